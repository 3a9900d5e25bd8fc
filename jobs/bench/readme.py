"""Renew the README's table and picture from a run of the demo.

    python jobs/bench/readme.py

Runs `jobs/eval_image.py` and `jobs/visualize.py` into a temporary folder (about five minutes on two
CPU cores), and writes the table into README.md and the picture into docs/pictures.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- demo table: make readme -->", "<!-- end -->"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = run("jobs/eval_image.py", "--output", folder)
        readme = ROOT / "README.md"
        readme.write_text(with_table(readme.read_text(), summary_table(output)))
        # a second method: pictures are drawn of rows on which two of the same budget disagree
        run("jobs/eval_image.py", "--output", folder, "--method", "random", "--budget", "64")
        runs = [next(Path(folder).glob(f"shapes-*-{name}-64-*")) for name in ("apet", "random")]
        run("jobs/visualize.py", *map(str, runs), "--count", "1", "--output", folder)
        picture = next(Path(folder, "pictures").glob("*kept*.png"))
        shutil.copy(picture, ROOT / "docs" / "pictures" / "kept.png")


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def summary_table(output: str) -> str:
    """The table in a job's output: the header line, a rule, and a line for each method."""
    lines = output.splitlines()
    rule = next(number for number, line in enumerate(lines) if re.fullmatch(r"-{40,}", line))
    end = next(number for number in range(rule, len(lines)) if not lines[number].strip())
    return "\n".join(lines[rule - 1 : end])


def with_table(readme: str, table: str) -> str:
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n```\n{table}\n```\n{END}{after}"


if __name__ == "__main__":
    main()
