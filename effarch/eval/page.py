"""The frame of a report: one HTML page with its style inside, light or dark as the reader's system is."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {
  --page: #fbfaf8; --card: #ffffff; --ink: #23262b; --muted: #676d77; --grid: #e2e0dc; --best: #e7f2ec;
  --accent: #1f7a58;
  --c0: #2f6db5; --c1: #8d939e; --c2: #cf8a24; --c3: #b84f5f; --c4: #7b62b8; --c5: #238a64; --c6: #2a9bb0;
  --c7: #946a4c;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #16181c; --card: #1d2025; --ink: #e4e6ea; --muted: #9aa1ac; --grid: #33373f; --best: #1d3a30;
  --accent: #6fcfa6;
  --c0: #6ea6e8; --c1: #9ba2ae; --c2: #e5ae55; --c3: #e2808e; --c4: #ab94e6; --c5: #5cc79b; --c6: #5fc4d6;
  --c7: #c79b7c;
} }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.2rem clamp(1rem, 4vw, 2.5rem) 4rem; background: var(--page);
  color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; font-weight: 650; margin: 0 0 .6rem; }
h2 { font-size: 1.1rem; font-weight: 650; margin: 2.4rem 0 .8rem; }
.summary { max-width: 46rem; margin: 0; color: var(--muted); }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--grid); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 5.4rem; line-height: 1.3; }
thead small { display: block; font-weight: 400; color: var(--muted); white-space: nowrap; }
tr > :first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th { font-weight: 500; white-space: normal; min-width: 8.5rem; }
.left { text-align: left; }
td.best { font-weight: 650; color: var(--accent); background: var(--best); }
.legend { list-style: none; margin: 0 0 1rem; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.3rem;
  font-size: .9rem; }
.legend i { display: inline-block; width: .75em; height: .75em; border-radius: 3px; margin-right: .45em; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr));
  align-items: start; }
figure { margin: 0; padding: .9rem 1rem .7rem; background: var(--card); border: 1px solid var(--grid);
  border-radius: 8px; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .5rem; }
svg { display: block; width: 100%; height: auto; max-width: 34rem; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif !important; }
pre { margin: 0; padding: 1rem; overflow-x: auto; font: .86rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  background: var(--card); border: 1px solid var(--grid); border-radius: 8px; }
.notes { color: var(--muted); font-size: .9rem; margin: .8rem 0 0; padding-left: 1.1rem; }
.prompt { color: var(--muted); }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .25rem 1.2rem; margin: 0;
  font-size: .9rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 34rem) { .run, .run dl { grid-template-columns: 1fr; gap: 0; } .run > dd { margin-bottom: .6rem; } }
</style>
</head>
<body>
<h1>{title}</h1>
{sections}
</body>
</html>
"""
