"""The look of rows of tokens, beside that of all pages.

Every kind of text has a line under it of its own, so that colour is not the only sign.
"""

STYLE = """\
.lengths svg { display: block; width: 100%; height: 8rem; border-bottom: 1px solid var(--line); }
.lengths rect { fill: var(--bar); }
.lengths rect:hover { fill: var(--words-line); }
.axis { display: flex; justify-content: space-between; margin: 0.3rem 0 0; color: var(--faint); font-size: 0.85rem; }
h2 + .axis { margin: -0.4rem 0 0.4rem; }
.table:first-child { grid-column: 1 / -1; }
@media (min-width: 66rem) { .table:nth-child(2) { grid-row: span 3; } }
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
  .legend { gap: 0.25rem 0.6rem; font-size: 0.78rem; }
  .body { font-size: 0.82rem; }
}
@media print { .legend { position: static; } .row { break-inside: auto; } }
"""
