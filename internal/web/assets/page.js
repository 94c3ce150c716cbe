"use strict";

// Text from logs is the attacker's: it is only ever set as text, and what isn't
// plain to see in it is shown by its number.
const plain = (s) => String(s).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");
const $ = (id) => document.getElementById(id);
const make = (tag, text, className) => {
	const e = document.createElement(tag);
	if (text !== undefined) e.textContent = plain(text);
	if (className) e.className = className;
	return e;
};
const number = (n) => Math.round(n).toLocaleString("en");
const count = (n, what) => number(n) + " " + what + (n === 1 ? "" : "s");
const time = (t) => new Date(t).toLocaleString();
const short = (p) => p.replace(/^([^:]+)\/32$|^(.*:.*)\/128$/, "$1$2");
const left = (until) => {
	if (!until) return "forever";
	let s = Math.round((new Date(until) - Date.now()) / 1000);
	if (s <= 0) return "ended";
	const parts = [];
	for (const [unit, n] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
		if (s >= n && parts.length < 2) { parts.push(Math.floor(s / n) + unit); s %= n; }
	}
	return parts.join("");
};

const seen = []; // {drop, pass} per second
let last;

const draw = () => {
	let most = 1;
	for (const v of seen) most = Math.max(most, v.drop, v.pass);
	for (const what of ["drop", "pass"]) {
		const points = seen.map((v, i) => (600 - (seen.length - 1 - i) * 4) + "," + (118 - 114 * v[what] / most));
		document.querySelector("polyline." + what).setAttribute("points", points.join(" "));
	}
	$("scale").textContent = "top of the plot: " + number(most);
};

const cells = (row, ...list) => {
	for (const [value, isNumber] of list) {
		const td = make("td", undefined, isNumber ? "n" : "");
		if (value instanceof Node) td.append(value); else td.textContent = plain(value);
		row.append(td);
	}
	return row;
};

const show = (now) => {
	const at = new Date(now.at);
	if (last && at > last.at) {
		const seconds = (at - last.at) / 1000;
		const rate = (action) => Math.max(0, ((now.packets[action] || 0) - (last.packets[action] || 0)) / seconds);
		const v = { drop: rate("XDP_DROP"), pass: rate("XDP_PASS") };
		seen.push(v);
		if (seen.length > 150) seen.shift();
		$("drop").textContent = number(v.drop);
		$("pass").textContent = number(v.pass);
		draw();
	}
	last = { at, packets: now.packets };
	$("state").textContent = plain(now.version + ", " + count(now.bans, "ban") + ", guards " + (now.interfaces.join(", ") || "nothing"));
	$("problems").replaceChildren(...now.problems.map((p) => make("li", p)));
	$("jails").replaceChildren(...now.jails.map((j) => cells(document.createElement("tr"), [j.name], [number(j.bans), true], [number(j.total), true], [number(j.failures), true], [number(j.tracked), true])));
	// Who is on a row by keyboard stays there.
	const focused = document.activeElement && document.activeElement.dataset.prefix;
	$("bans").replaceChildren(...now.top.map((b) => {
		const ask = make("button", short(b.prefix));
		ask.dataset.prefix = b.prefix;
		ask.addEventListener("click", () => why(b.prefix));
		return cells(document.createElement("tr"), [ask], [b.jail], [left(b.until)], [number(b.packets), true], [number(b.bytes), true]);
	}));
	if (focused) {
		for (const b of $("bans").querySelectorAll("button")) if (b.dataset.prefix === focused) b.focus();
	}
	$("more").textContent = now.bans > now.top.length ? "and " + number(now.bans - now.top.length) + " more" : "";
	$("unban").hidden = !now.may_unban;
};

const get = async (path) => {
	const r = await fetch(path);
	const v = await r.json();
	if (!r.ok) throw new Error(v.message);
	return v;
};

let asked;
const why = async (address) => {
	asked = address;
	$("whose").textContent = plain(short(address));
	for (const id of ["facts", "timeline", "events"]) $(id).replaceChildren();
	$("said").textContent = $("span").textContent = "";
	if (!$("why").open) $("why").showModal();
	try {
		const w = await get("api/why?address=" + encodeURIComponent(address));
		asked = w.prefix;
		const facts = [];
		if (!(w.bans || []).length) facts.push(make("p", "It is not banned."));
		for (const b of w.bans || []) {
			facts.push(make("p", "Banned" + (b.prefix === w.prefix ? "" : " as part of " + b.prefix) + " by " + b.jail + " since " + time(b.since) + ", " + (b.until ? left(b.until) + " left" : "forever") + "; " + count(b.packets, "packet") + " dropped" + (b.failures ? "; after " + count(b.failures, "failure") : "") + (b.strikes ? "; " + count(b.strikes, "ban") + " before" : "") + "."));
			if (b.pattern) facts.push(make("pre", b.pattern));
			if (b.evidence && b.evidence.length) {
				const lines = make("pre");
				lines.textContent = b.evidence.map(plain).join("\n");
				facts.push(lines);
			}
		}
		for (const a of w.allowed || []) facts.push(make("p", a.prefix + " is on the allowlist (" + a.origin + ")."));
		for (const x of w.windows || []) facts.push(make("p", x.jail + ": " + x.failures + " of " + count(x.maxretry, "failure") + " within " + x.findtime + ", the last at " + time(x.last) + "."));
		$("facts").replaceChildren(...facts);
		timeline(w.history || []);
	} catch (e) {
		$("facts").replaceChildren(make("p", e.message));
	}
};

const timeline = (events) => {
	$("events").replaceChildren(...events.map((e) => make("li", time(e.time) + " " + e.kind + " " + short(e.ban.prefix) + " by " + e.ban.jail + (e.kind === "ban" ? "" : ", " + count(e.ban.packets, "packet") + " dropped"))));
	if (!events.length) return;
	const from = +new Date(events[0].time), to = Math.max(Date.now(), from + 1000);
	const bars = [];
	events.forEach((e, i) => {
		if (e.kind !== "ban") return;
		const end = events.slice(i + 1).find((x) => x.kind !== "ban" && x.ban.prefix === e.ban.prefix && x.ban.jail === e.ban.jail);
		const a = (new Date(e.time) - from) / (to - from) * 600, b = ((end ? +new Date(end.time) : to) - from) / (to - from) * 600;
		const r = document.createElementNS("http://www.w3.org/2000/svg", "rect");
		for (const [k, v] of [["x", a], ["y", 4], ["width", Math.max(b - a, 2)], ["height", 16]]) r.setAttribute(k, v);
		bars.push(r);
	});
	$("timeline").replaceChildren(...bars);
	$("span").textContent = time(from) + " to now";
};

$("ask").addEventListener("submit", (e) => {
	e.preventDefault();
	const a = $("address").value.trim();
	if (a) why(a);
});
$("close").addEventListener("click", () => $("why").close());
$("unban").addEventListener("submit", async (e) => {
	e.preventDefault();
	const r = await fetch("api/unban", { method: "POST", headers: { "Authorization": "Bearer " + $("token").value, "Content-Type": "application/json" }, body: JSON.stringify({ prefix: asked }) });
	const v = await r.json().catch(() => ({ message: r.statusText }));
	const p = asked;
	if (!r.ok) { $("said").textContent = plain(v.message); return; }
	await why(p);
	$("said").textContent = v.unbanned ? "Unbanned." : "It wasn't banned.";
	look();
});

const look = async () => {
	try {
		show(await get("api/now"));
	} catch (e) {
		$("state").textContent = "no answer: " + plain(e.message);
		last = undefined;
	}
};
const go = async () => {
	if (!document.hidden) await look();
	setTimeout(go, 2000);
};
go();
