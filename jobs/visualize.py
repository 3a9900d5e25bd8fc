"""Draw what a model was shown and what was left of it: the paper's Figures 2 and 4, for rows of real runs.

    python jobs/visualize.py results/shapes-*                               # four rows on which the runs disagree
    python jobs/visualize.py results/shapes-*-apet-* results/shapes-*-random-* --count 12
    python jobs/visualize.py results/gqa-* --rows 201307251,201640614

Each row gives two pictures:

kept    the picture as the model sees it, and for each run the patches whose tokens it keeps: clear those that are kept
        to the end, half faded those dropped inside the decoder, faded those dropped before it; with the answers
ranked  what each patch is worth: the vision tower's attention, the decoder's attention and ApET's approximation error

Runs are folders of one model and one benchmark, as the jobs print them. The model is loaded again and asked these rows
again, one by one; where its answer is not the run's, picture and output say so: sums round differently alone, in a
batch and on another machine, or the model has changed. Media are read from where the runs read them; what a run was
allowed beyond that (--trust-remote-code, --allow-outside) has to be allowed here again. The pictures and pictures.json,
a list of file, title and caption, are put into <output>/pictures.

Without --rows, rows are taken on which two runs of the same budget disagree: one is right and the other wrong, both
ways round in turn. The caption says how often each happens.
"""

from __future__ import annotations

import argparse
import sys

from pipelines.config import parsers
from pipelines.config.paths import to_write
from pipelines.text import redacted


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a folder of answers: a path, s3:// or gs://"
    )
    parser.add_argument("--rows", metavar="ID,ID", help="draw these rows")
    parser.add_argument(
        "--count", metavar="N", default="4", help="of rows on which runs disagree (4)"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )
    parser.add_argument(
        "--allow-outside", action="store_true", help="read media outside the media root, too"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="where `pictures` is put (beside the first run)"
    )
    options = parser.parse_args()
    try:
        rows = [row.strip() for row in options.rows.split(",")] if options.rows else None
        count = parsers.whole(1, 4)(options.count)
        from pipelines.visualize import visualize  # torch comes with it

        output = to_write(options.output, "output") if options.output else None
        trust = {
            "trust_remote_code": options.trust_remote_code,
            "allow_outside": options.allow_outside,
        }
        visualize(options.runs, rows, count, output, **trust)
    except (ValueError, OSError) as error:
        print(f"visualize.py: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
