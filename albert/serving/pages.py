"""Pages for people: what the model can do, every address with a form to try it, and a search box.

Nothing on them is loaded from elsewhere, so that they show on a machine without internet; a header
forbids it.
"""

import html
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import HTMLResponse

from albert.serving.abilities import Ability
from albert.serving.backend import Card

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .3rem; }}
p {{ margin: .3rem 0; }}
pre, textarea, input {{ font: 13px/1.4 ui-monospace, monospace; box-sizing: border-box;
  width: 100%; }}
pre {{ padding: .6rem; background: #8882; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; }}
.inline input {{ width: auto; }}
li {{ margin: .6rem 0; overflow-wrap: anywhere; }}
small {{ opacity: .7; }}
th, td {{ text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0;
  border-bottom: 1px solid #8884; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
_SEND = """<script>
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const shown = form.querySelector("pre");
    const headers = {"Content-Type": "application/json"};
    const token = document.querySelector("#token").value;
    if (token) headers.Authorization = "Bearer " + token;
    shown.hidden = false;
    shown.textContent = "...";
    const begin = performance.now();
    try {
      const body = form.querySelector("textarea").value;
      const got = await fetch(form.dataset.path, {method: "POST", headers, body});
      const text = JSON.stringify(await got.json(), null, 1);
      const took = Math.round(performance.now() - begin);
      shown.textContent = got.status + ", " + took + " ms\\n" + text;
    } catch (error) {
      shown.textContent = String(error);
    }
  });
}
</script>"""


_SEARCH = """<script>
const byId = (name) => document.getElementById(name);
byId("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  const headers = {"Content-Type": "application/json"};
  const token = byId("token")?.value;
  if (token) headers.Authorization = "Bearer " + token;
  const body = JSON.stringify({query: byId("query").value, exact: byId("exact").checked});
  byId("found").replaceChildren();
  byId("told").textContent = "...";
  const begin = performance.now();
  try {
    const got = await fetch("search", {method: "POST", headers, body});
    const answer = await got.json();
    if (!got.ok) throw new Error(answer.error);
    for (const each of answer.results) {
      const item = document.createElement("li");
      const place = document.createElement("small");
      place.textContent = each.score.toFixed(3) + ", " + each.file + ", line " + each.line;
      item.append(each.text, document.createElement("br"), place);
      byId("found").append(item);
    }
    const took = Math.round(performance.now() - begin);
    byId("told").textContent = answer.results.length + " sentences, " + took + " ms" +
      (answer.cut.length ? "; the query is longer than the model reads, its end was cut" : "");
  } catch (error) {
    byId("told").textContent = error.message;
  }
});
</script>"""


def respond(text: str) -> HTMLResponse:
    return HTMLResponse(text, headers=_HEADERS)


def index(card: Card, served: Sequence[Ability], base: str, needs_token: bool) -> str:
    """What the model can do, with a command for each thing."""
    told = [
        f"<h1>{html.escape(card.name)}</h1>",
        f"<p>An ALBERT model that reads up to {card.positions} pieces of text. "
        '<a href="docs">Every field, and forms to try it</a>; <a href="openapi.json">the schema'
        '</a>; <a href="health">health</a>; <a href="metrics">metrics</a>.</p>',
    ]
    if any(ability.path == "/search" for ability in served):
        told.append('<p><a href="search">Search the index</a> from a page.</p>')
    if needs_token:
        told.append("<p>Requests bear a token: set TOKEN to it.</p>")
    for ability in served:
        token = ' -H "Authorization: Bearer $TOKEN"' if needs_token else ""
        body = shlex.quote(json.dumps(ability.example))
        command = (
            f"curl {base}{ability.path} -H 'Content-Type: application/json'{token} \\\n  -d {body}"
        )
        told += [
            f"<h2>{html.escape(ability.summary)}</h2>",
            f"<pre>{html.escape(command)}</pre>",
        ]
    return _PAGE.format(title=html.escape(card.name), body="\n".join(told))


def search(card: Card, sentences: int, needs_token: bool) -> str:
    """A box for a query, and what is found below it."""
    told = [
        "<h1>Search</h1>",
        f"<p>{sentences:,} sentences, by their meaning as {html.escape(card.name)} has it.</p>",
        '<form id="search"><input id="query" type="search" aria-label="Query" autofocus required '
        'placeholder="What is looked for"><p><button>Search</button> '
        '<label class="inline"><input id="exact" type="checkbox"> look at every sentence</label>'
        "</p>",
        '<p><label class="inline">Token: <input id="token" type="password" autocomplete="off">'
        "</label></p>"
        if needs_token
        else "",
        "</form>",
        '<p id="told" role="status"></p><ol id="found"></ol>',
    ]
    return _PAGE.format(title="ALBERT: search", body="\n".join([*told, _SEARCH]))


def reference(schema: Mapping[str, Any]) -> str:
    """Every address of an OpenAPI schema: its fields, what comes back, and a form."""
    told = [
        f"<h1>{html.escape(schema['info']['title'])}</h1>",
        f"<p>{html.escape(schema['info']['description'])} The same as "
        '<a href="openapi.json">OpenAPI schema</a>, for programs.</p>',
        '<p><label>Token, where one is needed: <input id="token" type="password" '
        'autocomplete="off"></label></p>',
    ]
    errors: dict[str, str] = {}
    for path, methods in schema["paths"].items():
        for method, call in methods.items():
            errors |= {s: r["description"] for s, r in call["responses"].items() if s != "200"}
            told.append(f"<h2>{method.upper()} {html.escape(path)}</h2>")
            told.append(f"<p>{html.escape(call['summary'])}</p>")
            if "requestBody" in call:
                told += _form(schema, path, call)
    told.append('<h2>In place of an answer</h2><p>{"error": a sentence}, with one of these:</p>')
    told += [f"<p>{status}: {html.escape(text)}</p>" for status, text in sorted(errors.items())]
    return _PAGE.format(title="ALBERT: reference", body="\n".join([*told, _SEND]))


def _form(schema: Mapping[str, Any], path: str, call: Mapping[str, Any]) -> list[str]:
    """The fields of a request and of its answer, and a form that sends the example."""
    content = call["requestBody"]["content"]["application/json"]
    answer = call["responses"]["200"]["content"]["application/json"]["schema"]
    return [
        *_fields(schema, content["schema"], "Send"),
        *_fields(schema, answer, "Get"),
        f'<form data-path="{html.escape(path.lstrip("/"))}">'
        f'<textarea rows="5" aria-label="Request">'
        f"{html.escape(json.dumps(content['example'], indent=1))}</textarea>"
        "<button>Send</button><pre hidden></pre></form>",
    ]


def _fields(schema: Mapping[str, Any], of: Mapping[str, Any], title: str) -> list[str]:
    found = _resolved(schema, of)
    rows = [
        "<tr><td>{}{}</td><td>{}</td><td>{}</td></tr>".format(
            html.escape(name),
            " *" if name in found.get("required", ()) and title == "Send" else "",
            html.escape(_kind(schema, field)),
            html.escape(field.get("description", "")),
        )
        for name, field in found["properties"].items()
    ]
    needed = " (* must be given)" if any(" *</td>" in row for row in rows) else ""
    return [
        f"<table><thead><tr><th>{title}{needed}</th><th></th><th></th></tr></thead><tbody>",
        *rows,
        "</tbody></table>",
    ]


def _resolved(schema: Mapping[str, Any], of: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference of the schema names."""
    while "$ref" in of:
        found: Any = schema
        for part in of["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        of = found
    return of


def _kind(schema: Mapping[str, Any], field: Mapping[str, Any]) -> str:
    """A field's type and bounds in words."""
    field = _resolved(schema, field)
    if "anyOf" in field:
        return " or ".join(
            _kind(schema, each) for each in field["anyOf"] if each.get("type") != "null"
        )
    if field.get("type") == "array":
        low, high = field.get("minItems"), field.get("maxItems")
        bounds = f" of {low} to {high:,}" if low is not None and high is not None else " of"
        return f"list{bounds} {_kind(schema, field['items'])}"
    if field.get("type") == "object" and "properties" in field:
        inside = (f"{n}: {_kind(schema, each)}" for n, each in field["properties"].items())
        return f"{{{', '.join(inside)}}}"
    if field.get("type") == "object":
        return f"names with {_kind(schema, field['additionalProperties'])}"
    words = {"string": "text", "integer": "whole number"}
    told = words.get(field.get("type", ""), field.get("type", ""))
    if "enum" in field:
        told = " or ".join(field["enum"])
    if "maxLength" in field:
        told += f" of at most {field['maxLength']:,} characters"
    if "minimum" in field:
        told += f" from {field['minimum']:g} to {field['maximum']:g}"
    if "default" in field:
        told += f", {field['default']} by default"
    return told
