"""The report's page in a browser: on a phone and on a wide screen, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape

import bench_files
import pytest

from fastres.bench.report import load
from fastres.bench.report.page import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
PHONE, WIDE = 375, 1280
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"needs {' or '.join(NAMES)} on PATH")

# The page forbids scripts, so it is shown in frames of a page that looks into them.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><title>frames</title>
<body>{frames}<pre id="found"></pre>
<script>
function luminance(colour) {{
  const [r, g, b] = colour.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}}
function parsed(text) {{ return (text.match(/[\\d.]+/g) || []).map(Number); }}
function ground(view, element) {{
  for (let at = element; at; at = at.parentElement) {{
    const colour = parsed(view.getComputedStyle(at).backgroundColor);
    if (colour.length == 3 || colour[3] > 0) return colour.slice(0, 3);
  }}
  return [255, 255, 255];
}}
function contrast(view, element) {{
  const style = view.getComputedStyle(element);
  const drawn = element instanceof view.SVGElement ? style.fill : style.color;
  const [a, b] = [parsed(drawn).slice(0, 3), ground(view, element)].map(luminance);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}}
function look(frame) {{
  const view = frame.contentWindow, root = frame.contentDocument.documentElement;
  root.querySelectorAll("details").forEach(one => one.open = true);
  const seen = [...root.querySelectorAll("body *")].filter(one => one.getClientRects().length);
  const texts = seen.filter(one =>
    [...one.childNodes].some(node => node.nodeType == 3 && node.data.trim())
    && !["title", "STYLE"].includes(one.tagName));
  const outside = seen.filter(one => !one.closest(".scroll > table, pre") &&
    one.getBoundingClientRect().right > root.clientWidth + 1);
  const faint = texts.filter(one => contrast(view, one) < 4.5);
  return {{
    width: root.clientWidth, needed: root.scrollWidth, texts: texts.length,
    outside: outside.map(one => one.tagName + ": " + one.textContent.slice(0, 60)),
    faint: faint.map(one => one.tagName + "." + one.className + ": " + one.textContent),
    ground: parsed(view.getComputedStyle(frame.contentDocument.body).backgroundColor),
    drawings: [...root.querySelectorAll("figure")].map(figure =>
      [...figure.querySelectorAll("svg")].filter(svg => svg.getClientRects().length).length),
    requests: view.performance.getEntriesByType("resource").map(one => one.name),
    boxes: [...root.querySelectorAll(".scroll")].some(box => box.scrollWidth > box.clientWidth),
  }};
}}
addEventListener("load", () => document.getElementById("found").textContent =
  JSON.stringify([...document.querySelectorAll("iframe")].map(look)));
</script>"""


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    files = [bench_files.write(folder, bench_files.everything())]
    older = bench_files.named(bench_files.case(date="2025-12-31"))
    cpu = bench_files.case(device=bench_files.CPU, model="torchvision.resnet152")
    files.append(bench_files.write(folder, {"cases": older}, "older.json"))
    files.append(bench_files.write(folder, {"cases": bench_files.named(cpu)}, "cpu.json"))
    return page(load.read(files))


@pytest.fixture(scope="module", params=["light", "dark"])
def seen(request, content, tmp_path_factory):
    """What is found in the frame of a phone and in a wide one, and what the browser said."""
    folder = tmp_path_factory.mktemp(request.param)
    frames = "".join(
        f'<iframe style="border: 0; width: {width}px" srcdoc="{escape(content)}"></iframe>'
        for width in (PHONE, WIDE)
    )
    (folder / "frames.html").write_text(FRAME.format(frames=frames), encoding="utf-8")
    scheme = {"dark": 0, "light": 1}[request.param]
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}",
        "--enable-logging=stderr", "--window-size=1400,2000", "--virtual-time-budget=5000",
        "--dump-dom", (folder / "frames.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return request.param, json.loads(unescape(found[1])), done.stderr


def test_nothing_is_wider_than_the_screen(seen):
    _, frames, _ = seen
    assert [frame["width"] for frame in frames] == [PHONE, WIDE]
    for frame in frames:
        assert frame["needed"] == frame["width"]
        assert frame["outside"] == []
    assert frames[0]["boxes"], "a wide table scrolls in its own box"


def test_each_figure_is_drawn_once(seen):
    for frame in seen[1]:
        assert len(frame["drawings"]) > 10
        assert set(frame["drawings"]) == {1}


def test_text_can_be_read_in_light_and_dark(seen):
    scheme, frames, _ = seen
    for frame in frames:
        assert (sum(frame["ground"]) > 600) == (scheme == "light")
        assert frame["texts"] > 200
        assert frame["faint"] == []


def test_nothing_is_requested_and_the_console_is_silent(seen):
    _, frames, said = seen
    assert [frame["requests"] for frame in frames] == [[], []]
    assert not re.findall(r".*CONSOLE.*", said)
