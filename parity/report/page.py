"""The report's page, as a Jinja template. A module and not a data file, so that it is installed with the code."""

# ruff: noqa: E501

PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Parity: {{ status }}</title>
<style>
:root { --ink: #1d2530; --muted: #6b7785; --line: #e3e8ee; --soft: #f5f7fa; --mono: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
* { box-sizing: border-box; }
body { margin: 0; background: #eef1f5; color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 80px; }
h2 { font-size: 17px; margin: 0 0 12px; }
.banner { color: #fff; border-radius: 14px; padding: 26px 30px; margin-bottom: 18px; }
.banner .word { font-size: 34px; font-weight: 700; line-height: 1.15; letter-spacing: -.4px; }
.banner .why { font-size: 16px; opacity: .95; margin-top: 6px; overflow-wrap: anywhere; }
.banner .facts { font-size: 13px; opacity: .85; margin-top: 12px; }
.card { background: #fff; border-radius: 12px; padding: 20px 24px; margin-bottom: 18px; box-shadow: 0 1px 2px rgba(20, 30, 50, .06); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 14px; }
.numbers > div { background: #fff; border-radius: 12px; padding: 14px 18px; box-shadow: 0 1px 2px rgba(20, 30, 50, .06); }
.numbers { margin-bottom: 18px; }
.numbers b { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--muted); font-size: 13px; display: block; overflow-wrap: anywhere; }
.start { border-left: 6px solid #dc2626; }
.start .stage { font: 600 18px var(--mono); overflow-wrap: anywhere; }
.pill { display: inline-block; border-radius: 999px; padding: 1px 10px; font-size: 12px; font-weight: 600; color: #fff; vertical-align: middle; white-space: nowrap; }
.muted { color: var(--muted); }
.small { font-size: 13px; }
svg, img { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; color: var(--muted); font-weight: 600; padding: 4px 8px; border-bottom: 1px solid var(--line); }
td { padding: 4px 8px; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-family: var(--mono); white-space: nowrap; font-size: 12px; overflow-wrap: normal; }
tr.differs td { background: #fff8eb; }
details { margin: 0; }
summary { cursor: pointer; }
.tree details { padding-left: 18px; border-left: 1px solid var(--line); margin-left: 5px; }
.tree > details { border: 0; padding: 0; margin: 0; }
.tree summary { padding: 2px 0; list-style-position: outside; }
.tree summary .count { color: var(--muted); font-size: 12px; margin-left: 6px; }
.row { display: grid; grid-template-columns: 14px minmax(120px, 1fr) 74px 74px 74px 74px 74px 220px; gap: 8px; align-items: baseline; padding: 2px 0 2px 18px; font-size: 13px; }
.row .n { font: 12px var(--mono); text-align: right; }
.row .name { font-family: var(--mono); overflow-wrap: anywhere; }
.row .text { grid-column: 2 / -1; color: var(--muted); font-size: 12px; overflow-wrap: anywhere; }
.row.head { color: var(--muted); font-size: 12px; border-bottom: 1px solid var(--line); position: sticky; top: 0; background: #fff; }
.row.here { background: #fef2f2; border-radius: 6px; }
.dot { width: 10px; height: 10px; border-radius: 50%; display: inline-block; flex: none; }
.legend { display: flex; gap: 18px; flex-wrap: wrap; font-size: 13px; color: var(--muted); margin: 0 0 10px; }
.legend i { display: inline-block; width: 14px; height: 14px; border-radius: 3px; margin-right: 6px; vertical-align: -2px; }
pre { background: var(--soft); border-radius: 8px; padding: 12px 14px; overflow-x: auto; font: 12.5px/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
button { font: inherit; font-size: 13px; border: 1px solid var(--line); background: #fff; border-radius: 8px; padding: 5px 12px; cursor: pointer; margin: 10px 8px 0 0; }
button:hover { background: var(--soft); }
nav { display: flex; gap: 8px; flex-wrap: wrap; margin-bottom: 14px; }
nav a { text-decoration: none; color: var(--ink); background: #fff; border-radius: 999px; padding: 4px 14px; font-size: 13px; }
h2, .mono { overflow-wrap: anywhere; }
.mono { font-family: var(--mono); font-weight: 400; }
.scroll { overflow-x: auto; }
@media (max-width: 760px) {
  main { padding: 12px 10px 60px; }
  .card { padding: 16px 14px; }
  .banner { padding: 20px; }
  .scroll > svg, .scroll > img { width: 760px; max-width: none; }
  .scroll > table { min-width: 640px; }
  .row { grid-template-columns: 14px minmax(0, 1fr) 62px 62px 62px; padding-left: 4px; }
  .row .opt { display: none; }
  .row .verdict { grid-column: 2 / -1; }
  .row .verdict:empty { display: none; }
  .tree details { padding-left: 10px; }
  .env tr { display: grid; grid-template-columns: 1fr 1fr; border-bottom: 1px solid var(--line); }
  .env td, .env th { border: 0; padding: 2px 6px; }
  .env td:first-child { grid-column: 1 / -1; padding-top: 6px; }
  .env th:first-child { display: none; }
}
@media print { body { background: #fff; } .card, .numbers > div { box-shadow: none; border: 1px solid var(--line); } }
</style>
</head>
<body>
<main>
{% macro stage_row(stage, first) %}
<div class="row{{ ' here' if first is not none and stage.name == first.name }}">
  <span class="dot" style="background:{{ stage.overall | colour }}" title="{{ stage.overall }}"></span>
  <span class="name">{{ stage.name | leaf }}</span>
  <span class="n">{{ (stage.metrics.rel_l2 if stage.metrics else none) | number }}</span>
  <span class="n opt">{{ (stage.forced_metrics.rel_l2 if stage.forced_metrics else none) | number }}</span>
  <span class="n">{{ (stage.errors.candidate.rel_l2 if stage.errors else none) | number }}</span>
  <span class="n">{{ (stage.limit.value if stage.limit else none) | number }}</span>
  <span class="n opt">{{ (stage.limit.noise if stage.limit else none) | number }}</span>
  <span class="verdict">{% if stage.overall != Status.PASS %}<span class="pill" style="background:{{ stage.overall | colour }}">{{ stage.overall }}</span> {% endif %}{% if stage.verdict != Verdict.NONE %}{{ stage.verdict }}{% endif %}{% if first is not none and stage.name == first.name %} <b style="color:#dc2626;white-space:nowrap">← starts here</b>{% endif %}</span>
  {% set text = [stage.message, ('same input: ' ~ stage.forced_message) if stage.forced_message else '', ('waived: ' ~ stage.waiver) if stage.waiver else ''] | select | join('; ') %}
  {% if text and (stage.overall != Status.PASS or stage.kind != 'continuous') %}<span class="text">{{ text }}</span>{% endif %}
</div>
{% endmacro %}
{% macro module(node, first) %}
{% for child in node.children.values() %}
{% set bad = child.status not in (Status.PASS, Status.BORDERLINE) %}
<details{{ ' open' if bad or child.status == Status.BORDERLINE }}>
  <summary><span class="dot" style="background:{{ child.status | colour }}"></span> <span class="name">{{ child.name }}</span><span class="count">{{ child.all_stages | length }}</span></summary>
  {% for stage in child.stages %}{{ stage_row(stage, first) }}{% endfor %}
  {{ module(child, first) }}
</details>
{% endfor %}
{% endmacro %}
{% if sections | length > 1 %}
<nav>{% for s in sections %}<a href="#s{{ loop.index }}"><span class="dot" style="background:{{ s.c.status | colour }}"></span> {{ s.c.candidate }} · {{ s.c.image }}</a>{% endfor %}</nav>
{% endif %}
{% for s in sections %}
{% set c = s.c %}
<section id="s{{ loop.index }}">
<div class="banner" style="background:{{ (Status.ERROR if not c.deterministic else Status.PASS if c.status == Status.BORDERLINE else c.status) | colour }}">
  <div class="word">{{ s.headline.split(':')[0] }}</div>
  <div class="why">{{ s.headline.split(':', 1)[1] }}</div>
  <div class="facts">{{ c.candidate }} against {{ c.reference }} · {{ c.image }} · {{ c.profile }} profile · noise: {{ c.noise_source }} · exit status {{ c.exit_code }}</div>
</div>
<div class="numbers">{% for value, what, remark in s.cards %}<div><b>{{ value }}</b><span>{{ what }}</span>{% if remark %}<span class="small">{{ remark }}</span>{% endif %}</div>{% endfor %}</div>
{% if s.first is not none %}
<div class="card start">
  <h2>Where it starts</h2>
  <div class="stage">{{ s.first.name }} <span class="pill" style="background:{{ s.first.overall | colour }}">{{ s.first.verdict if s.first.verdict != Verdict.NONE else s.first.overall }}</span></div>
  <p>{{ s.first_text }} <b>{{ s.advice | capitalize }}.</b></p>
  {% if c.caveat %}<p><b>Caution:</b> {{ c.caveat }}.</p>{% endif %}
  <p class="small muted">{{ s.first.message }}{% if s.first.forced_message %} · same input: {{ s.first.forced_message }}{% endif %}</p>
  {% if s.first.metrics %}{% set m = s.first.metrics %}
  <div class="scroll"><table><tr><th>relative L2</th><th>largest / largest value</th><th>99.9 % of elements</th><th>signed bias</th><th>worst channel</th><th>border ring / inside</th><th>worst element</th></tr>
  <tr><td>{{ m.rel_l2 | number }}</td><td>{{ m.max_rel | number }}</td><td>{{ m.p999_rel | number }}</td><td>{{ m.bias | number }}</td><td>{{ m.worst_channel }} ({{ m.channel_rel_l2 | number }})</td><td>{{ m.ring_rel_l2 | number }} / {{ m.inner_rel_l2 | number }}</td><td>{{ m.worst_index }}: {{ '%.7g' | format(m.worst_reference) }} → {{ '%.7g' | format(m.worst_candidate) }}</td></tr></table></div>
  {% endif %}
</div>
{% endif %}
{% if s.growth %}
<div class="card"><h2>How the error grows</h2><div class="scroll">{{ s.growth | safe }}</div></div>
{% endif %}
{% if s.heat %}
<div class="card"><h2>{{ 'The first bad stage' if s.first is not none else 'The stage nearest to its limit' }}: <span class="mono">{{ s.worst.name }}</span></h2><div class="scroll"><img alt="heat maps of {{ s.worst.name }}" src="{{ s.heat }}"></div></div>
{% endif %}
{% if s.overlay %}
<div class="card"><h2>Detections of both sides</h2>
<div class="legend"><span><i style="background:#16a34a"></i>the same on both sides</span><span><i style="background:#2563eb"></i>{{ c.reference }}</span><span><i style="background:#ea580c"></i>{{ c.candidate }}</span><span>filled: only on that side; label: class and score</span></div>
<img alt="detections of both sides" src="{{ s.overlay }}">
{% if s.scatter %}<div class="scroll" style="margin-top:14px">{{ s.scatter | safe }}</div>{% endif %}
</div>
{% endif %}
{% if s.masks %}
<div class="card"><h2>Mask pixels that differ</h2><div class="legend"><span><i style="background:#2563eb"></i>only in {{ c.reference }}</span><span><i style="background:#ea580c"></i>only in {{ c.candidate }}</span><span>each pixel is drawn with its neighbours</span></div><img alt="mask pixels that differ" src="{{ s.masks }}"></div>
{% endif %}
{% if s.certificates or s.notes %}
<div class="card"><h2>Differences and their margins</h2>
<div class="scroll"><table><tr><th></th><th>stage</th><th>what happened</th><th class="n">margin</th><th class="n">allowed</th></tr>
{% for stage, x in s.certificates %}<tr><td><span class="pill" style="background:{{ '#d97706' if x.certified else '#dc2626' }}">{{ 'explained' if x.certified else 'unexplained' }}</span></td><td>{{ stage.name | short }}</td><td>{{ x.side }} {{ x.index }}: {{ x.text }}</td><td class="n">{{ '%.1e' | format(x.margin | float) }}</td><td class="n">{{ '%.1e' | format(x.allowed | float) }}</td></tr>{% endfor %}
{% for stage, text in s.notes %}<tr><td></td><td>{{ stage.name | short }}</td><td colspan="3">{{ text }}</td></tr>{% endfor %}
</table></div></div>
{% endif %}
<div class="card tree"><h2>Every stage</h2>
<div class="row head"><span></span><span>module and array</span><span class="n">end to end</span><span class="n opt">same input</span><span class="n" title="the candidate's distance from a float64 run of the reference; the limit is of this distance where there is such a run">from float64</span><span class="n">limit</span><span class="n opt" title="the reference's own distance from its float64 run, or without one its difference from another run of itself">reference's</span><span class="opt">verdict</span></div>
{% for child in s.tree.children.values() %}
<details open><summary><span class="dot" style="background:{{ child.status | colour }}"></span> <b>{{ child.name }}</b><span class="count">{{ child.all_stages | length }}</span></summary>
{% for stage in child.stages %}{{ stage_row(stage, s.first) }}{% endfor %}
{{ module(child, s.first) }}
</details>
{% endfor %}
</div>
<div class="card"><h2>Environment</h2>
<table class="env"><tr><th></th><th>{{ c.reference }}</th><th>{{ c.candidate }}</th></tr>
{% for key, a, b, differs in s.environment %}<tr{{ ' class=differs' if differs }}><td class="muted">{{ key }}</td><td>{{ a }}</td><td>{{ b }}</td></tr>{% endfor %}
</table></div>
{% if c.notes %}<div class="card"><h2>Notes</h2><ul class="small">{% for note in c.notes %}<li>{{ note }}</li>{% endfor %}</ul></div>{% endif %}
{% if c.command %}<div class="card"><h2>Do it again</h2><pre id="cmd{{ loop.index }}">{{ c.command }}</pre><button data-copy="cmd{{ loop.index }}">Copy the command</button><button data-save>Save the JSON result</button></div>{% endif %}
</section>
{% endfor %}
</main>
<script type="application/json" id="result">{{ json_text | safe }}</script>
<script>
document.querySelectorAll('[data-copy]').forEach(function (b) {
  b.addEventListener('click', function () {
    var text = document.getElementById(b.dataset.copy).textContent;
    var done = function () { b.textContent = 'Copied'; };
    if (navigator.clipboard) { navigator.clipboard.writeText(text).then(done, function () { select(b); }); } else { select(b); }
  });
});
function select(b) { var r = document.createRange(); r.selectNodeContents(document.getElementById(b.dataset.copy)); var s = getSelection(); s.removeAllRanges(); s.addRange(r); b.textContent = 'Selected: press Ctrl+C'; }
document.querySelectorAll('[data-save]').forEach(function (b) {
  b.addEventListener('click', function () {
    var a = document.createElement('a');
    a.href = URL.createObjectURL(new Blob([document.getElementById('result').textContent], {type: 'application/json'}));
    a.download = 'parity.json'; a.click();
  });
});
</script>
</body>
</html>
"""
