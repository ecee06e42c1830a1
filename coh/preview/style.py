"""The look of the page: two palettes, by what the reader's system prefers, and one layout from phone to wide screen.

Every kind of text has a line under it of its own, so that colour is not the only sign.
"""

STYLE = """\
:root {
  --paper: #f7f6f2; --card: #ffffff; --ink: #1d2126; --faint: #646b73; --line: #e0ddd4; --bar: #2f7d4f;
  --target: #d8f1de; --target-line: #1c7a3c; --words: #fdeec4; --words-line: #a86d00; --prompt: #2c4a78;
  --critique: #efe0f8; --critique-line: #7a3fa3; --output: #dfeafb; --output-line: #3565ad;
  --strip: #a9bedd; --problem: #b3261e; --problem-back: #fdeceb; --warning: #8a5a00; --warning-back: #fff5dd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131619; --card: #1b1f24; --ink: #e4e5e2; --faint: #99a1aa; --line: #31373e; --bar: #58b67c;
    --target: #17402a; --target-line: #58c583; --words: #46360f; --words-line: #dfac48; --prompt: #a9c4ee;
    --critique: #3b2850; --critique-line: #c299e6; --output: #20375a; --output-line: #80aef0;
    --strip: #4a6490; --problem: #ff9d94; --problem-back: #3a1c1b; --warning: #f0c265; --warning-back: #352a12;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; }
h2 { margin: 0 0 0.75rem; font-size: 1.05rem; }
header p { margin: 0.25rem 0 1.5rem; color: var(--faint); overflow-wrap: anywhere; }
.verdict { margin: 0 0 0.75rem; padding: 0.8rem 1.1rem; border-left: 4px solid; border-radius: 6px; }
.verdict h2 { margin: 0; font-size: 1rem; }
.verdict ul { margin: 0.4rem 0 0; padding-left: 1.2rem; color: var(--ink); overflow-wrap: anywhere; }
.problem { background: var(--problem-back); color: var(--problem); }
.warning { background: var(--warning-back); color: var(--warning); }
.good { background: var(--target); color: var(--target-line); }
.glance {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.75rem; margin: 1.5rem 0 0.75rem;
}
.glance div, .lengths, .table, .row {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem;
}
.glance dt { color: var(--faint); font-size: 0.85rem; }
.glance dd { margin: 0; color: var(--faint); font-size: 0.85rem; line-height: 1.35; }
.glance dt + dd { color: var(--ink); font-size: 1.6rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.lengths svg { display: block; width: 100%; height: 8rem; border-bottom: 1px solid var(--line); }
.lengths rect { fill: var(--bar); }
.lengths rect:hover { fill: var(--words-line); }
.axis { display: flex; justify-content: space-between; margin: 0.3rem 0 0; color: var(--faint); font-size: 0.85rem; }
h2 + .axis { margin: -0.4rem 0 0.4rem; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0.75rem; }
.tables { margin-top: 0.75rem; align-items: start; }
.table { min-width: 0; }
.table:first-child { grid-column: 1 / -1; }
@media (min-width: 66rem) { .table:nth-child(2) { grid-row: span 3; } }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th { color: var(--faint); font-weight: 500; text-align: left; }
th, td { padding: 0.3rem 1rem 0.3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0.2rem; }
td.word { white-space: normal; overflow-wrap: break-word; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; }
details { margin-top: 0.5rem; font-size: 0.9rem; }
summary { color: var(--faint); cursor: pointer; }
.rows { margin-top: 2.5rem; }
.rows > h2 { margin: 0; font-size: 1.4rem; letter-spacing: -0.01em; }
.legend {
  position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 0.35rem 0.9rem; margin: 0 0 0.5rem;
  align-items: baseline;
  padding: 0.6rem 0; background: var(--paper); font-size: 0.85rem;
}
.row { margin-bottom: 1.25rem; }
h3 { margin: 0 0 0.6rem; font-size: 1.1rem; }
h3 small { color: var(--faint); font-size: 0.85rem; font-weight: 400; }
h3 small::before { content: " "; }
.ribbon { display: flex; height: 0.7rem; margin-bottom: 0.9rem; border-radius: 4px; overflow: hidden; }
.ribbon i { flex: 1 1 0; min-width: 0; padding: 0; border: 0; }
.ribbon b { flex: 0 0 3px; background: var(--card); }
.ribbon .target { background: var(--target-line); }
.ribbon .prompt, .ribbon .text { background: var(--strip); }
.ribbon .words, .ribbon .record { background: var(--words-line); }
.ribbon .critique { background: var(--critique-line); }
.ribbon .output { background: var(--output-line); }
.ribbon .padding { background: repeating-linear-gradient(-45deg, var(--line) 0 3px, transparent 3px 6px); }
.document { border-top: 1px solid var(--line); padding: 0.6rem 0 0.9rem; }
.document:last-child { padding-bottom: 0; }
h4 { display: flex; flex-wrap: wrap; margin: 0 0 0.4rem; color: var(--faint); font-size: 0.8rem; font-weight: 400; }
h4 span + span::before { content: "·"; margin: 0 0.45rem; }
h4 span:first-child { color: var(--ink); font-weight: 600; }
.body {
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext;
  font: 0.9rem/1.75 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
span.target, span.words, span.record, span.critique, span.output {
  padding: 0.12em 0; border-radius: 2px; box-decoration-break: clone; -webkit-box-decoration-break: clone;
  text-decoration-thickness: 2px; text-underline-offset: 0.25em;
}
span.target { background: var(--target); text-decoration: underline solid 2px var(--target-line); }
span.prompt { color: var(--prompt); }
span.text { color: var(--faint); }
span.words, span.record { background: var(--words); text-decoration: underline dotted 2px var(--words-line); }
span.critique { background: var(--critique); text-decoration: underline wavy 1px var(--critique-line); }
span.output { background: var(--output); text-decoration: underline dashed 1px var(--output-line); }
span.special { border: 1px solid currentColor; border-radius: 4px; padding: 0 0.25em; font-size: 0.85em; }
.body sub { margin: 0 0.3em 0 0.1em; color: var(--faint); font-size: 0.62em; user-select: none; }
.legend span:not(.special) { padding: 0 0.25em; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 0.9rem 3rem; }
  h1 { font-size: 1.6rem; }
  .glance { grid-template-columns: 1fr 1fr; gap: 0.5rem; }
  .glance div, .lengths, .table, .row { padding: 0.75rem 0.8rem; }
  .glance dt + dd { font-size: 1.3rem; }
  .legend { gap: 0.25rem 0.6rem; font-size: 0.78rem; }
  .body { font-size: 0.82rem; }
  th, td { padding-right: 0.6rem; }
  .wide, .wide tbody, .wide tr { display: block; }
  .wide thead { display: none; }
  .wide tr { padding: 0.4rem 0; border-bottom: 1px solid var(--line); }
  .wide tr:last-child { border-bottom: 0; }
  .wide td { display: flex; justify-content: space-between; padding: 0.1rem 0; border: 0; }
  .wide td::before { content: attr(data-column); color: var(--faint); }
  .wide td:first-child { font-weight: 600; }
  .wide td:first-child::before { content: none; }
}
@media print { .legend { position: static; } .row { break-inside: auto; } }
"""
