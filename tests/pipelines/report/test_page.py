"""The page in a browser without a network, as wide as a phone and as a desktop."""

from __future__ import annotations

import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.report.writer import write_report
from tests.support.reported import rows_of, run

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--allow-file-access-from-files",
    "--proxy-server=127.0.0.1:9",
)
MEASURE = """<script>addEventListener("load", () => {
  const inside = (e) => e.closest(".scroll, pre, svg");
  const shown = [...document.querySelectorAll("body *")].filter((e) => e.getClientRects().length);
  const box = (e) => e.getBoundingClientRect();
  const hasText = (e) => [...e.childNodes].some((n) => n.nodeType == 3 && n.data.trim());
  const words = shown.filter(hasText);
  const start = (e) => e.outerHTML.slice(0, 80);
  const fontSize = (e) => parseFloat(getComputedStyle(e).fontSize);
  const isNarrow = (e) => !inside(e) && e.textContent.trim().length > 3 && box(e).width < 20;
  const scroll = document.querySelector(".scroll:has(.published)");
  scroll.scrollLeft = 1e6;
  parent.postMessage({
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    wide: shown.filter((e) => !inside(e) && box(e).right > innerWidth + 1).map(start),
    small: words.filter((e) => fontSize(e) < 11).map(start),
    narrow: words.filter(isNarrow).length,
    stuck: Math.round(box(scroll.querySelector("tbody tr:not(.group) th")).left - box(scroll).left),
    charts: [...document.querySelectorAll(".charts img")].map((e) => Math.round(box(e).width)),
    pictures: [...document.querySelectorAll("figure img")].map(
      (e) => [e.naturalWidth, Math.round(box(e).width)]),
    published: getComputedStyle(document.querySelector("tr.published")).fontStyle,
    rows: document.querySelectorAll("tbody tr").length,
  }, "*");
})</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("gqa", "mme", "pope")):
        for attn in ("sdpa", "flash_attention_2"):
            more: Any = {"model": "llava-1.5-7b-hf", "attn": attn}
            run(output, name, "vanilla", rows_of(name, seed, 0.9), **more)
            for place, method in enumerate(("apet", "fastv", "downsample")):
                for budget in ("64", "192"):
                    run(
                        output,
                        name,
                        method,
                        rows_of(name, 10 * seed + place, 0.7),
                        budget=budget,
                        **more,
                    )
    (output / "pictures").mkdir()
    Image.new("RGB", (1240, 300), "grey").save(output / "pictures" / "a.png")
    listed = [{"file": "a.png", "title": "An image", "caption": "Kept and dropped."}]
    (output / "pictures" / "pictures.json").write_text(json.dumps(listed))
    write_report([str(output)])
    return output / "report" / "report.html"


def browse(browser: str, page: Path, profile: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        browser,
        *FLAGS,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=20000",
        *more,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def measure(browser: str, page: Path, width: int, folder: Path) -> dict[str, Any]:
    """Measures the page in a frame of that width: windows of browsers have a minimum width."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    (folder / "copy.html").write_text(text.replace("</body>", f"{MEASURE}</body>"))
    (folder / "frame.html").write_text(
        "<script>onmessage = (e) => {"
        " document.body.dataset.found = JSON.stringify(e.data) }</script>"
        f'<iframe src="copy.html" style="width:{width}px;height:800px;border:0"></iframe>'
    )
    found = re.search(
        r'data-found="([^"]*)"',
        browse(browser, folder / "frame.html", folder / "profile", "--dump-dom").stdout,
    )
    assert found
    result: dict[str, Any] = json.loads(unescape(found[1]))
    return result


@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_screen(page: Path, width: int, tmp_path: Path, browser: str) -> None:
    found = measure(browser, page, width, tmp_path)
    assert found["width"] == width
    assert found["page"] <= width
    assert found["wide"] == []
    assert found["small"] == []
    assert found["narrow"] == 0
    # Names of methods stay visible while the numbers are scrolled.
    assert abs(found["stuck"]) <= 2
    # Three benchmarks with two kernels, and a comparison of the kernels for each.
    assert len(found["charts"]) == 9
    assert min(found["charts"]) > 300
    [[there, shown]] = found["pictures"]
    assert there == 1240
    assert shown <= width
    assert found["published"] == "italic"
    assert found["rows"] > 100


def test_page_loads_nothing_and_logs_no_errors(page: Path, tmp_path: Path, browser: str) -> None:
    done = browse(browser, page, tmp_path, "--enable-logging=stderr", "--dump-dom")
    assert "Rows/s" in done.stdout
    assert not re.findall(r".*(?:CONSOLE|Refused|ERR_).*", done.stderr)


def test_policy_blocks_injected_scripts(page: Path, tmp_path: Path, browser: str) -> None:
    """A script that escaped the escaping would still not run."""
    (tmp_path / "bad.html").write_text(
        page.read_text().replace("</body>", "<script>document.title='run'</script></body>")
    )
    assert (
        "<title>run</title>"
        not in browse(browser, tmp_path / "bad.html", tmp_path / "profile", "--dump-dom").stdout
    )
