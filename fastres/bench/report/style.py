"""The page's CSS: one column, light or dark as the reader's system has it, no request to anywhere.

Colours are told apart without hue as well: by lightness, markers, dashes and direct labels.
"""

CSS = """
:root { color-scheme: light dark;
  --bg: #ffffff; --fg: #1c2128; --muted: #57606a; --line: #d5dae0; --soft: #f4f6f8;
  --ours: #0b5cad; --base: #4d5560; --peer: #8a939d; --warn: #8a4600; --good: #1c2128;
  --p0: #b34d00; --p1: #0b7a5c; --p2: #8b3a86; --p3: #766800; --p4: #b3261e; --p5: #00708c; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #101418; --fg: #e4e8ec; --muted: #a0a9b3; --line: #323a43; --soft: #1a2027;
  --ours: #5ba3f0; --base: #b3bbc4; --peer: #737d88; --warn: #f0b060;
  --p0: #f0a04b; --p1: #4fc3a1; --p2: #d59ad3; --p3: #d2c04a; --p4: #f28b82; --p5: #5cc8e6; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 2.5rem 1rem 4rem; max-width: 54.5rem; background: var(--bg);
  color: var(--fg); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Liberation Sans", Arial, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3.2rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h2.device { border: 0; padding: 0; margin: 1.6rem 0 0; font-size: 1rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
p { margin: .4rem 0 1rem; max-width: 44rem; }
a { color: var(--ours); }
:focus-visible { outline: 2px solid var(--ours); outline-offset: 2px; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .86em; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 4px;
  padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0 1rem; }
.muted, figcaption, .lead { color: var(--muted); }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0;
  margin: 1.2rem 0 0; font-size: .93rem; }
.ratios { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr));
  gap: 1.4rem 1.4rem; list-style: none; padding: 0; margin: 1.2rem 0 1.4rem; }
.ratios li { border-top: 3px solid var(--ours); padding-top: .45rem; }
.ratios .value { display: block; font-size: 2.1rem; line-height: 1.15; font-weight: 650;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.ratios .range { font-size: 1.45rem; line-height: 1.67; }
.ratios .what { display: block; font-weight: 600; font-size: .93rem; line-height: 1.35; }
.ratios .how { display: block; color: var(--muted); font-size: .86rem; line-height: 1.4; }
.ratios li.unsure { border-top-style: dashed; }
.noisy { color: var(--warn); font-weight: 600; }
figure { margin: 1rem 0 1.8rem; }
figcaption { font-size: .9rem; margin: 0 0 .7rem; max-width: 44rem; }
figcaption strong { display: block; color: var(--fg); font-size: 1rem; }
figure svg { display: block; max-width: 100%; height: auto; overflow: visible; }
.narrow { display: none !important; }
@media (max-width: 50rem) { body { padding-top: 1.5rem; }
  .wide { display: none !important; } figure svg.narrow { display: block !important; }
  .ratios { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.2rem 1rem; }
  .ratios .value { font-size: 1.8rem; } .ratios .range { font-size: 1.25rem; } }
.scroll { overflow-x: auto; margin: .6rem 0 1.4rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-size: .88rem; line-height: 1.4; min-width: 100%;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding: 0 0 .4rem; }
th, td { text-align: right; padding: .32rem .7rem .32rem 0; vertical-align: top;
  white-space: nowrap; border-top: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; border-top: 0; vertical-align: bottom; }
th:first-child, td:first-child, .text { text-align: left; }
td.reason { white-space: normal; min-width: 18rem; overflow-wrap: anywhere; }
td.text, th.text:not(:first-child) { padding-left: .8rem; }
tbody th { font-weight: 400; }
tbody th[scope=rowgroup] { font-weight: 600; padding-top: .8rem; }
tr.ours th { color: var(--ours); font-weight: 600; }
details { margin: .4rem 0 1.4rem; }
summary { cursor: pointer; color: var(--ours); font-size: .93rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.2rem;
  margin: .5rem 0 1rem; font-size: .92rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  "Liberation Sans", Arial, sans-serif; fill: var(--fg); font-variant-numeric: tabular-nums; }
svg text.small { font-size: 12px; fill: var(--muted); }
svg text.strong { font-weight: 600; }
svg text.solid { fill: var(--fg); paint-order: stroke; stroke: var(--bg); stroke-width: 3px; }
.ours { fill: var(--ours); } .base { fill: var(--base); } .peer { fill: var(--peer); }
.light { opacity: .38; } .hollow { fill: var(--bg); stroke: var(--ours); stroke-width: 2; }
.operator { fill-opacity: .55; stroke: var(--ours); stroke-width: 1.2; }
.outline-bound { fill: none; stroke: var(--base); stroke-width: 1.2; stroke-dasharray: 4 2; }
.outline-ours { stroke: var(--ours); } .outline-peer { stroke: var(--peer); }
.outline-base { stroke: var(--base); }
.interval { stroke: var(--fg); stroke-width: 1.6; } .halo { stroke: var(--bg); stroke-width: 5; }
.reference { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; }
.grid { stroke: var(--line); stroke-width: 1; } .tick { stroke: var(--muted); }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.stroke-ours { stroke: var(--ours); } .stroke-base { stroke: var(--base); }
.stroke-roof { stroke: var(--fg); stroke-width: 1.6; }
""" + "".join(
    f".p{index} {{ fill: var(--p{index}); }} .stroke-p{index} {{ stroke: var(--p{index}); }}\n"
    for index in range(6)
)
