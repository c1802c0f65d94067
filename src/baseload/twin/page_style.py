"""How a report looks, and the few lines that read its charts under the pointer. No resource from elsewhere."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--panel:#fff;--ink:#16202c;--dim:#5d6b7a;--line:#e3e7ec;--c1:#1f6fd6;
--c2:#d9622b;--c3:#12927a;--c4:#c0392b;--c5:#8250c4}
@media(prefers-color-scheme:dark){:root:not([data-theme=light]){--bg:#0f141a;--panel:#171e26;--ink:#e6ebf1;
--dim:#93a1b0;--line:#29323d;--c1:#5aa2f7;--c2:#f0935c;--c3:#3fc4a8;--c4:#ef6f63;--c5:#b294f0}}
:root[data-theme=dark]{color-scheme:dark;--bg:#0f141a;--panel:#171e26;--ink:#e6ebf1;--dim:#93a1b0;--line:#29323d;
--c1:#5aa2f7;--c2:#f0935c;--c3:#3fc4a8;--c4:#ef6f63;--c5:#b294f0}
:root[data-theme=light]{color-scheme:light}
*{box-sizing:border-box}body,html{margin:0}
html{background:var(--bg);color:var(--ink);font:15px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main,footer{max-width:1280px;margin:0 auto;padding:0 24px}
header{display:flex;justify-content:space-between;align-items:center;gap:16px;padding-top:28px}
h1{font-size:24px;margin:0;font-weight:650;letter-spacing:-.01em}h2{font-size:17px;margin:34px 0 12px;font-weight:620}
button{font:inherit;font-size:13px;color:var(--dim);background:none;border:1px solid var(--line);border-radius:8px;
padding:5px 11px;cursor:pointer}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(178px,1fr));gap:12px;margin-top:22px}
.card{background:var(--panel);border:1px solid var(--line);border-radius:12px;padding:13px 15px;display:flex;
flex-direction:column}
.card span{color:var(--dim);font-size:13px}.card b{font-size:25px;font-weight:640;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}.card small{color:var(--dim);font-size:12px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,470px),1fr));gap:16px}
.grid.wide{grid-template-columns:1fr}
figure{margin:0;background:var(--panel);border:1px solid var(--line);border-radius:12px;padding:14px 16px 10px;
min-width:0}
figcaption{display:flex;flex-wrap:wrap;align-items:baseline;gap:4px 8px;margin-bottom:8px}
figcaption b{font-weight:600}figcaption small,.note{color:var(--dim);font-size:12.5px}
.keys{margin-left:auto;display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12.5px;color:var(--dim)}
.key{display:inline-flex;align-items:center;gap:6px}.key i{width:16px;height:0;border-top:2.5px solid var(--k)}
.key i.dash{border-top-style:dashed}
svg{width:100%;height:auto;display:block;overflow:visible}
svg path{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}
svg path.dash{stroke-dasharray:6 4}svg path.fill{fill:var(--k);stroke:none;opacity:.11}
.grid line.grid,line.grid{stroke:var(--line);stroke-width:1}.tick,.row{font-size:11px;fill:var(--dim);
font-variant-numeric:tabular-nums}.row{font-size:12px}.mark{opacity:.4}.event{opacity:.85}
.cross{stroke:var(--dim);stroke-width:1;stroke-dasharray:3 3;visibility:hidden}
@media(max-width:640px){header,main,footer{padding:0 14px}h1{font-size:20px}.tick{font-size:19px}.row{font-size:18px}
.cards{grid-template-columns:repeat(2,minmax(0,1fr))}.card b{font-size:21px}figure{padding:12px 10px 8px}}
.none{color:var(--dim);margin:18px 4px}.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.scroll td:last-child{min-width:7em}.why td:last-child{min-width:300px}.why td:first-child,.why td:nth-child(2){
white-space:nowrap}
table{border-collapse:collapse;width:100%;font-size:13.5px}th,td{text-align:left;padding:6px 12px 6px 0;
border-bottom:1px solid var(--line);vertical-align:top}th{color:var(--dim);font-weight:550;white-space:nowrap}
.r{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;padding-right:18px}
tbody tr:last-child td{border-bottom:0}
.broken{background:#c0392b22;border:1px solid var(--c4);border-radius:12px;padding:12px 16px}
footer{color:var(--dim);font-size:12.5px;padding-top:28px;padding-bottom:40px}
#tip{position:fixed;pointer-events:none;background:var(--ink);color:var(--bg);border-radius:8px;padding:7px 10px;
font-size:12.5px;line-height:1.5;font-variant-numeric:tabular-nums;z-index:9}
@media print{button{display:none}figure,.card,tr{break-inside:avoid}h2{break-after:avoid}.scroll{overflow:visible}
:root,:root:not([data-theme=light]),:root[data-theme=dark]{color-scheme:light;--bg:#fff;--panel:#fff;--ink:#16202c;
--dim:#5d6b7a;--line:#e3e7ec;--c1:#1f6fd6;--c2:#d9622b;--c3:#12927a;--c4:#c0392b;--c5:#8250c4}}
"""

SCRIPT = """
const root=document.documentElement,tip=document.getElementById('tip');
document.getElementById('theme').onclick=()=>{
const dark=getComputedStyle(root).getPropertyValue('--bg').includes('0f');root.dataset.theme=dark?'light':'dark'};
const words=(s,e)=>e>=259200?(s/86400).toFixed(2)+' d':e>=10800?(s/3600).toFixed(2)+' h':
e>=180?(s/60).toFixed(1)+' min':s.toFixed(1)+' s';
document.querySelectorAll('figure[data-x]').forEach(f=>{
const xs=f.dataset.x.split(',').map(Number),end=+f.dataset.end;
const ys=f.dataset.y.split(';').map(t=>{const i=t.lastIndexOf('|');return[t.slice(0,i),t.slice(i+1).split(',')]});
const svg=f.querySelector('svg'),cross=svg.querySelector('.cross');
svg.onmousemove=e=>{const b=svg.getBoundingClientRect(),px=(e.clientX-b.left)/b.width*640;
const s=(px-58)/(640-58-14)*end;let k=0;xs.forEach((x,i)=>{if(Math.abs(x-s)<Math.abs(xs[k]-s))k=i});
const at=58+(640-58-14)*xs[k]/end;cross.setAttribute('x1',at);cross.setAttribute('x2',at);
cross.style.visibility='visible';tip.hidden=false;tip.textContent='';
const line=t=>{const d=document.createElement('div');d.textContent=t;tip.append(d)};line(words(xs[k],end));
ys.forEach(([n,v])=>{if(v[k]!=='')line((n?n+': ':'')+Number(v[k]).toLocaleString(undefined,
{maximumSignificantDigits:4}))});
tip.style.left=Math.min(e.clientX+14,innerWidth-tip.offsetWidth-8)+'px';tip.style.top=(e.clientY+14)+'px'};
svg.onmouseleave=()=>{tip.hidden=true;cross.style.visibility='hidden'}});
"""
