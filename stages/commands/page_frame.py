"""Page frame: the HTML around a report, and its style, in light and in dark."""

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --back: #f5f6f8; --ink: #1d2430; --grey: #667080;
  --line: #dfe3e8; --warn: #a04510; }
@media (prefers-color-scheme: dark) { :root { --paper: #1b1f26; --back: #12151a; --ink: #e4e8ee; --grey: #97a1af;
  --line: #2f3640; --warn: #f0a06a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 0; font-size: 1.2rem; }
header p, section > p { margin: .1rem 0 .8rem; color: var(--grey); }
section, details { margin-top: 2.2rem; }
pre { margin: 0; padding: .6rem .8rem; background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
.reading { margin: 2.2rem 0 -1.6rem; color: var(--grey); }
.note { margin: .8rem 0 0; color: var(--warn); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .7rem; margin: .8rem 0 0; }
.cards div, figure { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
.cards div { padding: .6rem .85rem; }
dt { color: var(--grey); font-size: .85rem; }
dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
small { color: var(--grey); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: .7rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: .7rem;
  margin-top: .8rem; }
figure { margin: 0; padding: .55rem .6rem .4rem; min-width: 0; }
figcaption { padding: 0 .2rem .2rem; font-size: .85rem; font-weight: 600; }
img { display: block; width: 100%; height: auto; }
.large img { max-height: 34rem; }
@media (prefers-color-scheme: dark) { figure:not(.paper) img { filter: invert(0.9) hue-rotate(180deg); } }
.paper { background: #ffffff; margin-bottom: .7rem; }
.paper img { max-width: 60rem; margin: 0 auto; }
summary { cursor: pointer; font-size: 1.2rem; font-weight: 600; }
details + details { margin-top: 1rem; }
table { margin-top: .6rem; border-collapse: collapse; background: var(--paper); font-size: .88rem; }
th, td { padding: .25rem .8rem; border: 1px solid var(--line); text-align: left; font-variant-numeric: tabular-nums; }
th { color: var(--grey); font-weight: 600; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
"""The template of a page; `title` and `body` are HTML."""
