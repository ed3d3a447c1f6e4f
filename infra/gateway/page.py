"""/: one page that says what there is and searches. Nothing of it comes from elsewhere, so it works offline."""

from __future__ import annotations

import html

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse

router = APIRouter(include_in_schema=False)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"  # noqa: E501

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Penstock</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
input,button{font:inherit;padding:.3rem .5rem} #q{width:60%%} li{margin:.6rem 0} small,.note{color:#666}
code{background:#f3f3f3;padding:.1rem .3rem} td{padding:.15rem 1rem .15rem 0;vertical-align:top}
td:first-child{white-space:nowrap}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}code{background:#2a2a2a}a{color:#8ab4f8}}
</style></head><body>
<h1>Penstock</h1>
<form id="form" action="/v1/search" method="get">
<input id="q" name="q" placeholder="part-time nurse in Ohio" aria-label="Search" autofocus>
<input name="filter" placeholder="filter: remote=REMOTE" aria-label="Filter"> <button>Search</button>
</form>
<p id="note" class="note" role="status"></p><ol id="found"></ol><button id="more" hidden>More</button>
<h2>What there is</h2>
<table>%s</table>
<p>Every field and answer: <a href="/openapi.json">/openapi.json</a>. %s</p>
<script>
const $=id=>document.getElementById(id);let params,seen=0;
async function load(){
  const answer=await fetch('/v1/search?'+params);const body=await answer.json();
  if(!answer.ok){$('note').textContent=body.error.message;return}
  const read=(body.understood||[]).map(u=>u.label+(u.applied?'':' (not applied)')).join(', ');
  $('note').textContent=body.total+' pass'+(read?' · understood: '+read:'')
    +(body.degraded?' · degraded: '+body.degraded.join('; '):'');
  for(const item of body.items){
    const li=document.createElement('li'),b=document.createElement('b'),small=document.createElement('small');
    const p=item.posting||{},place=p.location?(p.location.text||[p.location.city,p.location.region]
      .filter(Boolean).join(', ')):'';
    b.textContent=p.title||item.posting_id+' (withdrawn since)';
    small.textContent=' '+[p.company,place,item.score.toFixed(3)].filter(Boolean).join(' · ');
    li.append(b,small);$('found').append(li);seen++}
  $('more').hidden=!body.next_cursor;if(body.next_cursor)params.set('cursor',body.next_cursor);
}
$('form').onsubmit=event=>{event.preventDefault();$('found').replaceChildren();seen=0;
  params=new URLSearchParams();for(const [name,value] of new FormData($('form')))if(value)params.append(name,value);
  load()};
$('more').onclick=load;
</script></body></html>
"""


@router.get("/")
async def index(request: Request) -> HTMLResponse:
    """The page."""
    rows = []
    for path, operations in request.app.openapi()["paths"].items():
        for method, operation in operations.items():
            what = html.escape(operation.get("description", "").split("\n")[0])
            rows.append(f"<tr><td><code>{method.upper()} {html.escape(path)}</code></td><td>{what}</td></tr>")
    rows.append("<tr><td><code>GET /metrics</code></td><td>For Prometheus.</td></tr>")
    keyed = "Calls need an API key: <code>Authorization: Bearer KEY</code> or <code>X-Api-Key: KEY</code>."
    note = keyed if request.app.state.parts.keys else ""
    return HTMLResponse(_PAGE % ("".join(rows), note), headers={"Content-Security-Policy": _POLICY})


@router.get("/docs")
async def docs() -> RedirectResponse:
    """Where people look for it."""
    return RedirectResponse("/")
