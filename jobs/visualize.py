"""Draw which visual tokens a model keeps: the paper's Figures 2 and 4, for rows of real runs.

    # four rows on which the runs disagree
    python jobs/visualize.py results/shapes-*
    python jobs/visualize.py results/shapes-*-apet-* results/shapes-*-random-* --count 12
    python jobs/visualize.py results/gqa-* --rows 201307251,201640614

Two pictures per row:

kept    the image as the model sees it, and for each run the patches of the kept tokens: opaque if
        kept to the end, half faded if dropped inside the decoder, faded if dropped before it; with
        the answers
ranked  scores of the patches: the attention of the vision tower, the attention of the decoder, and
        ApET's approximation error

The runs must have the same model and benchmark. The model is re-run on these rows, one by one; a
warning appears in the picture and the output if its answer differs from the stored one. Sums round
differently alone, in a batch and on another machine, or the model has changed. Media are read from
where the runs read them; what a run was allowed beyond that (--trust-remote-code, --allow-outside)
must be allowed again. The pictures, and pictures.json, a list of their files, titles and captions,
are written to `pictures` in the folder of --output.

Without --rows, rows are drawn on which two runs of the same budget disagree: one is right and the
other wrong, both ways in turn. The caption says how often each happens.
"""

import sys

from pipelines.config import parsers
from pipelines.config.command_line import CommandParser, argument_type, one_line_errors
from pipelines.config.paths import to_write


@one_line_errors("visualize.py")
def main() -> int:
    parser = CommandParser("visualize.py", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="Folders of runs, or folders that contain runs.")
    add("--rows", metavar="ID,ID", help="IDs of the rows to draw. Default: rows with disagreement.")
    add(
        "--count",
        type=argument_type(parsers.integer(1, 4)),
        metavar="N",
        default=4,
        help="Number of rows without --rows. Default: 4.",
    )
    add("--trust-remote-code", action="store_true", help="Run code that comes with the model.")
    add("--allow-outside", action="store_true", help="Also read media outside the media root.")
    add(
        "--output",
        metavar="FOLDER",
        help="Folder in which `pictures` is created. Default: beside the first run.",
    )
    options = parser.parse()
    rows = [row.strip() for row in options.rows.split(",")] if options.rows else None
    output = to_write(options.output, "output") if options.output else None
    from pipelines.visualize import visualize  # imports torch

    visualize(
        options.runs,
        rows,
        options.count,
        output,
        trust_remote_code=options.trust_remote_code,
        allow_outside=options.allow_outside,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
