"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  const metrics = Object.fromEntries(data.metrics.map((m) => [m.key, m]));
  const systems = data.systems;
  const sides = ["reference", ...systems];
  const shown = (side) => (side !== "reference" ? side : systems.includes("real") ? "reference" : "real");
  const colour = (side) => (side === "reference" ? "var(--real)" : `var(--s${systems.indexOf(side) % 6})`);
  const main = data.metrics.filter((m) => m.per_clip && m.main);
  const clips = data.clips;

  /** Make an element: attributes, then children; text is never read as HTML. */
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || value === null) continue;
      if (name.startsWith("aria-")) { node.setAttribute(name, String(value)); continue; }
      if (value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") node.style.cssText = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
    return node;
  }
  const icon = (path) => {
    const holder = document.createElement("template");
    holder.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true">${path}</svg>`;
    return holder.content.firstChild;
  };
  const known = (value) => typeof value === "number" && Number.isFinite(value);
  const number = (value, digits = 3) => (known(value) ? value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "−") : "–");
  const unit = (m) => (m.unit ? ` ${m.unit}` : "");
  const direction = (m) => ({ higher: "higher is better", lower: "lower is better" })[m.better] || "";
  const seconds = (clip) => Math.max(...Object.values(clip.seconds));

  // ---- theme ----
  const stored = (() => { try { return localStorage.getItem("mfm-theme"); } catch { return null; } })();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (name) => { root.dataset.theme = name; };
  setTheme(stored || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", (e) => { if (!stored) setTheme(e.matches ? "dark" : "light"); });
  $("theme").addEventListener("click", () => {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
    try { localStorage.setItem("mfm-theme", root.dataset.theme); } catch { /* a folder may have none */ }
  });

  // ---- title ----
  const p = data.protocol;
  const list = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);
  $("headline").textContent = `${list(systems)} beside the real sound`;
  document.title = `${list(systems)}: evaluation of generated sound`;
  const length = p.sides.reference.seconds;
  $("facts").textContent = `${p.clips} ${p.clips === 1 ? "clip" : "clips"} of ${number(length.median, 2)} s`
    + (length.least === length.most ? "" : ` (${number(length.least, 2)} to ${number(length.most, 2)} s)`)
    + ` · ${p.at.slice(0, 10)} · onsets ${p.onsets}`;
  $("legend").append(...sides.map((side) => el("li", { style: `--c:${colour(side)}` }, el("span", { class: "dot" }), shown(side))));

  // ---- summary ----
  const comparison = (side, key) => data.comparisons.find((c) => c.system === side)?.scores[key];
  function verdict(side, m) {
    const gap = comparison(side, m.key);
    if (!gap || !gap.verdict) return null;
    const about = `${number(gap.value, m.digits)} [${number(gap.low, m.digits)}, ${number(gap.high, m.digits)}] against ${systems[0]}, p = ${number(gap.p, 4)}, ${gap.n} clips`;
    return el("span", { class: `tag ${gap.verdict}`, title: about }, gap.verdict);
  }
  /** A caution that most figures share is told once, above; a card shows only another one. */
  const cautions = sides.flatMap((side) => Object.values(data.figures[side] || {}).map((f) => f.caution)).filter(Boolean);
  const usual = cautions.filter((text) => cautions.filter((other) => other === text).length > cautions.length / 2)[0];
  function card(m) {
    const rows = sides.map((side) => [side, data.figures[side]?.[m.key]]).filter(([, f]) => f);
    const ends = rows.flatMap(([, f]) => [f.low, f.high, f.value]).filter(known);
    let low = Math.min(...ends), high = Math.max(...ends);
    if (["onset_f1_100", "ssim", "av_align", "loa_recall"].includes(m.key)) { low = Math.min(low, 0); high = Math.max(high, 1); }
    const pad = (high - low || 1) * 0.06;
    low -= pad; high += pad;
    const at = (v) => 100 * (v - low) / (high - low);
    const own = [...new Set(rows.map(([, f]) => f.caution).filter((text) => text && text !== usual))];
    const out = [...new Set(rows.filter(([, f]) => f.left_out).map(([side, f]) => `${shown(side)}: ${f.left_out} left out`))];
    return el("article", { class: "card" },
      el("h3", {}, m.label, el("i", {}, direction(m))),
      el("div", { class: "forest" }, rows.flatMap(([side, f]) => [
        el("span", { title: shown(side) }, shown(side)),
        el("div", { class: "range", style: `--c:${colour(side)}`, title: `${number(f.value, m.digits)}${known(f.low) ? ` [${number(f.low, m.digits)}, ${number(f.high, m.digits)}]` : ""}, ${f.n} clips` },
          known(f.low) && el("u", { style: `left:${at(f.low)}%;width:${at(f.high) - at(f.low)}%` }),
          known(f.value) && el("em", { style: `left:${at(f.value)}%` })),
        el("b", {}, number(f.value, m.digits), m.unit && el("small", {}, m.unit),
          known(f.low) && el("small", {}, ` ± ${number((f.high - f.low) / 2, m.digits)}`)),
      ])),
      el("p", {}, m.about),
      own.map((text) => el("p", {}, el("span", { class: "tag" }, text))),
      out.length ? el("p", {}, out.join(", ")) : null);
  }
  const carded = data.metrics.filter((m) => m.main || (!m.per_clip && m.group === "Networks" && /^(fd|kad)_/.test(m.key)));
  $("cards").append(...carded.map(card));
  if (usual) $("notes").append(el("li", {}, `${usual[0].toUpperCase()}${usual.slice(1)}. Compare such figures with care.`));
  $("notes").append(...data.failed.map((f) => el("li", {}, `${f.clip} is left out: ${f.why}`)), ...data.notes.map((text) => el("li", {}, text)));
  function figures() {
    const columns = sides.filter((side) => Object.keys(data.figures[side] || {}).length);
    const body = [];
    let group = "";
    for (const m of data.metrics) {
      if (m.group !== group) {
        group = m.group;
        body.push(el("tr", {}, el("th", { colspan: 2 + columns.length, scope: "rowgroup" }, group)));
      }
      body.push(el("tr", {}, el("td", { title: m.about }, m.label, el("small", {}, m.key)), el("td", {}, direction(m)),
        columns.map((side) => {
          const f = data.figures[side][m.key];
          if (!f) return el("td");
          return el("td", { class: "n", title: f.caution }, `${number(f.value, m.digits)}${unit(m)}`,
            known(f.low) && el("small", {}, `[${number(f.low, m.digits)}, ${number(f.high, m.digits)}]`),
            el("small", {}, `n ${f.n}${f.left_out ? ` (${f.left_out} left out)` : ""}`), f.caution && el("small", {}, "*"), " ", verdict(side, m));
        })));
    }
    return [el("thead", {}, el("tr", {}, el("th", {}, "Score"), el("th", {}, ""), columns.map((side) => el("th", { class: "n" }, shown(side))))), el("tbody", {}, body)];
  }
  $("all").addEventListener("toggle", () => { if ($("all").open && !$("figures").firstChild) $("figures").append(...figures()); });

  // ---- the table: only the rows in view exist ----
  const state = { system: systems[0], key: "rank", up: true, text: "", range: null, chosen: null, list: [] };
  const value = (clip, key, system = state.system) => (key === "rank" ? clip.rank[system] : clip.scores[system]?.[key]);
  const columns = [{ key: "rank", label: "Rank", digits: 2, better: "higher" }, ...main];
  const limits = {};
  for (const m of columns) {
    const all = systems.flatMap((s) => clips.map((c) => value(c, m.key, s))).filter(known);
    limits[m.key] = [Math.min(...all), Math.max(...all)];
  }
  const grid = $("table"), body = $("rows"), live = new Map();
  const rowHeight = () => parseFloat(getComputedStyle(root).getPropertyValue("--row"));
  const narrow = matchMedia("(max-width: 940px)");
  const visibleColumns = () => (narrow.matches ? columns.filter((m) => m.key === state.key) : columns);

  function head() {
    const many = visibleColumns();
    grid.style.setProperty("--columns", `minmax(116px, 1.5fr) ${many.map(() => "minmax(76px, 1fr)").join(" ")}`);
    grid.style.setProperty("--wide", narrow.matches ? "0px" : `${116 + 76 * many.length}px`);
    const button = (key, label, title) => el("div", { role: "columnheader", "aria-sort": state.key === key ? (state.up ? "ascending" : "descending") : null },
      el("button", { type: "button", title, tabindex: "-1", onclick: () => sort(key) }, label, state.key === key ? (state.up ? " ↑" : " ↓") : ""));
    $("head").replaceChildren(button("name", "Clip", "Sort by name"), ...many.map((m) => button(m.key, m.label, m.about || "Mean rank over the scores shown, 0 is worst")));
    $("turn").replaceChildren(icon(state.up ? '<path d="M8 13V3M4 7l4-4 4 4"/>' : '<path d="M8 3v10M4 9l4 4 4-4"/>'));
    $("sort").value = state.key;
  }
  function makeRow(clip, index) {
    return el("div", { class: "row", role: "row", id: `row-${index}`, "aria-rowindex": index + 1, "aria-selected": clip === state.chosen,
      style: `top:${index * rowHeight()}px`, onclick: () => choose(index, true) },
      el("span", { role: "gridcell", title: clip.name }, clip.name),
      visibleColumns().map((m) => {
        const v = value(clip, m.key), [a, b] = limits[m.key];
        return el("span", { class: "cell", role: "gridcell", style: `--c:${colour(state.system)};--p:${known(v) && b > a ? 100 * (v - a) / (b - a) : 0}%` }, number(v, Math.min(m.digits, 2)));
      }));
  }
  function draw() {
    const height = rowHeight(), top = Math.max(0, grid.scrollTop - 46);
    const first = Math.max(0, Math.floor(top / height) - 6), last = Math.min(state.list.length, Math.ceil((top + grid.clientHeight) / height) + 6);
    for (const [index, node] of live) if (index < first || index >= last) { node.remove(); live.delete(index); }
    const fresh = document.createDocumentFragment();
    for (let i = first; i < last; i += 1) if (!live.has(i)) { const node = makeRow(state.list[i], i); live.set(i, node); fresh.append(node); }
    body.append(fresh);
  }
  function redraw() {
    live.clear();
    body.replaceChildren();
    body.style.cssText = `position:relative;height:${state.list.length * rowHeight()}px`;
    grid.setAttribute("aria-rowcount", state.list.length);
    $("none").hidden = state.list.length > 0;
    $("count").textContent = state.list.length === clips.length ? `${clips.length}${state.key === "rank" && state.up && clips.length > 1 ? ", the worst first" : ""}` : `${state.list.length} of ${clips.length}`;
    head();
    draw();
  }
  /** Understand the filter: words of names, and conditions such as onset_f1_100<0.5. */
  function conditions(text) {
    return text.trim().toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
      const found = /^([a-z0-9_]+)(<=|>=|<|>|=)(-?[0-9.]+)$/.exec(word);
      if (!found || !(found[1] in metrics || found[1] === "rank")) return (clip) => clip.name.toLowerCase().includes(word);
      const [, key, sign, bound] = found, b = Number(bound);
      const fits = { "<": (v) => v < b, ">": (v) => v > b, "<=": (v) => v <= b, ">=": (v) => v >= b, "=": (v) => v === b }[sign];
      return (clip) => known(value(clip, key)) && fits(value(clip, key));
    });
  }
  function apply(keep = true) {
    const tests = conditions(state.text);
    if (state.range) tests.push((clip) => { const v = value(clip, state.range.key, state.range.system); return known(v) && v >= state.range.low && v <= state.range.high; });
    const found = clips.filter((clip) => tests.every((test) => test(clip)));
    const sign = state.up ? 1 : -1;
    found.sort((x, y) => {
      if (state.key === "name") return sign * x.name.localeCompare(y.name, "en", { numeric: true });
      const a = value(x, state.key), b = value(y, state.key);
      if (!known(a) || !known(b)) return known(a) ? -1 : known(b) ? 1 : 0;
      return sign * (a - b) || value(x, "rank") - value(y, "rank");
    });
    state.list = found;
    if (!keep) grid.scrollTop = 0;
    redraw();
  }
  function sort(key) {
    const m = metrics[key];
    if (state.key === key) state.up = !state.up;
    else { state.key = key; state.up = key === "rank" || key === "name" || !m || m.better !== "lower"; }
    apply(false);
  }
  function choose(index, open = false) {
    const clip = state.list[index];
    if (!clip) return;
    const before = state.chosen;
    state.chosen = clip;
    for (const [i, node] of live) node.setAttribute("aria-selected", i === index);
    const height = rowHeight(), at = index * height;
    if (at < grid.scrollTop) grid.scrollTop = at;
    if (at + height + 46 > grid.scrollTop + grid.clientHeight) grid.scrollTop = at + height + 52 - grid.clientHeight;
    draw();
    grid.setAttribute("aria-activedescendant", `row-${index}`);
    if (clip !== before) show(clip);
    if (open && narrow.matches) {
      $("detail").classList.add("open");
      $("detail").querySelector(".close").focus();
    }
  }
  const place = () => state.list.indexOf(state.chosen);
  grid.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  grid.addEventListener("keydown", (e) => {
    const page = Math.max(1, Math.floor(grid.clientHeight / rowHeight()) - 2);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[e.key];
    if (step !== undefined) {
      e.preventDefault();
      choose(Math.min(state.list.length - 1, Math.max(0, place() + step)));
    } else if (e.key === "Enter") { e.preventDefault(); choose(Math.max(0, place()), true); }
  });
  $("find").addEventListener("input", () => { state.text = $("find").value; apply(false); });
  $("clear").addEventListener("click", () => { $("find").value = state.text = ""; setRange(null); apply(false); $("find").focus(); });
  $("turn").addEventListener("click", () => sort(state.key));
  $("sort").append(el("option", { value: "rank" }, "Rank"), el("option", { value: "name" }, "Name"),
    ...data.metrics.filter((m) => m.per_clip).map((m) => el("option", { value: m.key }, m.label)));
  for (const m of data.metrics) if (m.per_clip && !(m.key in limits)) {
    const all = systems.flatMap((s) => clips.map((c) => value(c, m.key, s))).filter(known);
    limits[m.key] = [Math.min(...all), Math.max(...all)];
  }
  $("sort").addEventListener("change", () => {
    const key = $("sort").value;
    if (!columns.some((m) => m.key === key) && metrics[key]) columns.splice(1, columns.length - main.length - 1, metrics[key]);
    sort(key);
  });
  if (systems.length > 1) {
    $("which").append(...systems.map((side) => el("button", { type: "button", role: "radio", "aria-checked": side === state.system, onclick: (e) => {
      state.system = side;
      for (const b of $("which").children) b.setAttribute("aria-checked", b === e.currentTarget);
      apply(false);
    } }, el("span", { class: "dot", style: `--c:${colour(side)}` }), side)));
  } else $("which").remove();
  narrow.addEventListener("change", redraw);
  new ResizeObserver(draw).observe(grid);

  // ---- the player: one transport, and one of several sounds is heard ----
  const player = { clip: null, side: "reference", media: {}, video: null, loop: true, frame: 0 };
  const line = (x, kind) => `<line class="${kind}" x1="${x}%" x2="${x}%" y1="0" y2="100%"/>`;
  function marks(clip, side) {
    const whole = seconds(clip), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const at = (t) => (100 * t / whole).toFixed(3);
    const truth = clip.contacts || [];
    svg.innerHTML = truth.map((t) => line(at(t), "contact")).join("")
      + clip.onsets[side].map((t) => `<line class="onset" x1="${at(t)}%" x2="${at(t)}%" y1="0" y2="14"/><circle class="tip" cx="${at(t)}%" cy="15" r="2.6"/>`).join("");
    svg.setAttribute("aria-hidden", "true");
    return svg;
  }
  function lane(clip, side, index) {
    const f = clip.scores[side] || {};
    const told = side !== "reference" && known(f.onset_f1_100) ? ` · onset F1 ${number(f.onset_f1_100, 2)}` : "";
    return el("button", { type: "button", class: "lane", style: `--c:${colour(side)}`, "data-side": side, "aria-pressed": side === player.side,
      "aria-label": `Hear ${shown(side)}`, onclick: (e) => {
        const box = e.currentTarget.getBoundingClientRect();
        hear(side, e.detail ? (e.clientX - box.left) / box.width * seconds(clip) : undefined);
        play();
      } },
      el("img", { src: clip.media[`picture:${side}`], alt: "", draggable: "false", style: `width:${100 * clip.seconds[side] / seconds(clip)}%` }), marks(clip, side),
      el("span", { class: "name" }, el("span", { class: "dot", style: `--c:${colour(side)}` }), `${shown(side)}${told}`, el("kbd", {}, String(index + 1))));
  }
  const PLAY = '<path d="M4.5 2.8v10.4c0 .5.6.8 1 .5l7.6-5.2a.6.6 0 0 0 0-1L5.5 2.3c-.4-.3-1 0-1 .5z"/>';
  const PAUSE = '<path d="M4 2.5h3v11H4zM9 2.5h3v11H9z"/>';
  function show(clip) {
    stop();
    for (const sound of Object.values(player.media)) { sound.removeAttribute("src"); sound.load(); }
    Object.assign(player, { clip, media: {}, video: null });
    if (!sides.includes(player.side)) player.side = "reference";
    for (const side of sides) {
      const sound = new Audio();
      sound.preload = "none";
      sound.src = clip.media[`sound:${side}`];
      sound.addEventListener("ended", ended);
      player.media[side] = sound;
    }
    const film = clip.media.video
      ? el("div", { class: "film" }, player.video = el("video", { src: clip.media.video, muted: true, playsinline: true, preload: "metadata", disablepictureinpicture: true, "aria-label": "The video", onclick: toggle }))
      : null;
    if (player.video) player.video.muted = true;
    const n = place() + 1;
    const table = el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, ""), systems.map((s) => el("th", { class: "n" }, s)))),
      el("tbody", {}, data.metrics.filter((m) => m.per_clip && systems.some((s) => known(clip.scores[s][m.key]))).map((m) =>
        el("tr", { title: m.about }, el("td", {}, m.label), systems.map((s) => el("td", { class: "n" }, `${number(clip.scores[s][m.key], m.digits)}${unit(m)}`))))));
    const small = (path, label, act) => el("button", { class: "quiet", type: "button", "aria-label": label, title: label, onclick: act }, icon(path));
    $("detail").replaceChildren(
      el("header", {},
        el("h3", {}, clip.name, el("small", {}, `${n} of ${state.list.length} · ${number(seconds(clip), 2)} s · rank ${number(clip.rank[state.system], 2)}`)),
        small('<path d="m10 3-5 5 5 5"/>', "Clip before (K)", () => choose(place() - 1)),
        small('<path d="m6 3 5 5-5 5"/>', "Next clip (J)", () => choose(place() + 1)),
        el("button", { class: "quiet close", type: "button", "aria-label": "Close", onclick: close }, icon('<path d="m3.5 3.5 9 9M12.5 3.5l-9 9"/>'))),
      el("div", { class: "stage", style: `--lane:${sides.length > 4 ? 62 : sides.length > 3 ? 78 : 98}px` },
        film,
        el("div", { class: "timed", style: "position:relative" },
          clip.media.strip && el("div", { class: "frames" }, el("img", { src: clip.media.strip, alt: "Frames of the video, from its beginning to its end", style: `width:${100 * clip.seconds.reference / seconds(clip)}%` })),
          sides.map((side, i) => lane(clip, side, i)),
          el("div", { class: "playing", id: "head-line" }))),
      el("div", { class: "axis", "aria-hidden": "true" }, [0, .25, .5, .75, 1].map((x) => el("span", {}, `${number(x * seconds(clip), 2)} s`))),
      el("div", { class: "transport" },
        el("button", { class: "play", id: "play", type: "button", "aria-label": "Play", onclick: toggle }, icon(PLAY)),
        el("span", { class: "clock", id: "clock" }, ""),
        el("label", { class: "by" }, el("input", { type: "checkbox", checked: player.loop, onchange: (e) => { player.loop = e.target.checked; } }), "repeat"),
        el("div", { class: "keys" }, el("span", {}, el("kbd", {}, "space"), " play"), el("span", {}, el("kbd", {}, "1"), "–", el("kbd", {}, String(sides.length)), " switch while it plays"), el("span", {}, el("kbd", {}, "J"), " ", el("kbd", {}, "K"), " next, before"))),
      el("div", { class: "legend2" },
        el("span", {}, icon('<line x1="8" x2="8" y1="0" y2="10" stroke="#fff" stroke-width="1.6"/><circle cx="8" cy="11" r="2.4" fill="#fff"/>'), "detected onset"),
        clip.contacts && el("span", {}, icon('<line x1="8" x2="8" y1="0" y2="16" stroke="#7fffd4" stroke-width="1.8" stroke-dasharray="3 3"/>'), "known contact")),
      table);
    tick();
  }
  const sound = () => player.media[player.side];
  function hear(side, time) {
    if (!(side in player.media)) return;
    const old = sound(), playing = !old.paused, at = time ?? old.currentTime;
    if (side !== player.side) old.pause();
    player.side = side;
    const now = sound();
    now.currentTime = Math.min(at, player.clip.seconds[side] - 0.01);
    if (player.video) player.video.currentTime = now.currentTime;
    if (playing) now.play().catch(() => {});
    for (const node of $("detail").querySelectorAll(".lane")) node.setAttribute("aria-pressed", node.dataset.side === side);
    tick();
  }
  function play() {
    if (!player.clip) return;
    const now = sound();
    if (player.video) { player.video.currentTime = now.currentTime; player.video.play().catch(() => {}); }
    now.play().catch(() => {});
    $("play").replaceChildren(icon(PAUSE));
    $("play").setAttribute("aria-label", "Pause");
    cancelAnimationFrame(player.frame);
    tick();
  }
  function stop() {
    for (const each of Object.values(player.media)) each.pause();
    player.video?.pause();
    if ($("play")) { $("play").replaceChildren(icon(PLAY)); $("play").setAttribute("aria-label", "Play"); }
  }
  const toggle = () => (sound()?.paused ? play() : stop());
  function ended() {
    if (player.loop) { sound().currentTime = 0; play(); } else { stop(); sound().currentTime = 0; tick(); }
  }
  function tick() {
    if (!player.clip || !$("head-line")) return;
    const time = sound().currentTime;
    $("head-line").style.left = `${100 * time / seconds(player.clip)}%`;
    $("clock").textContent = `${number(time, 2)} / ${number(seconds(player.clip), 2)} s`;
    if (!sound().paused) player.frame = requestAnimationFrame(tick);
  }
  function close() { stop(); $("detail").classList.remove("open"); grid.focus(); }
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const typing = e.target.closest?.("input[type=search], select, textarea");
    if (e.key === "Escape") { if (typing) { e.target.blur(); } else if ($("detail").classList.contains("open")) close(); return; }
    if (typing) return;
    if (e.key === "/") { e.preventDefault(); $("find").focus(); return; }
    if (e.key === " " && !e.target.closest?.("button:not(.lane), a, summary, input")) { e.preventDefault(); toggle(); return; }
    if (e.key === "j" || e.key === "J") choose(place() + 1);
    else if (e.key === "k" || e.key === "K") choose(place() - 1);
    else if (/^[1-9]$/.test(e.key) && sides[Number(e.key) - 1]) hear(sides[Number(e.key) - 1]);
  });

  // ---- distributions ----
  const BINS = 20;
  function setRange(range) {
    state.range = range;
    for (const b of document.querySelectorAll(".bars button")) b.setAttribute("aria-pressed", range !== null && b.dataset.id === range.id);
  }
  function plot(m) {
    const [low, high] = limits[m.key];
    if (!known(low) || !(high > low)) return null;
    const width = (high - low) / BINS;
    const rows = systems.map((side) => {
      const bins = Array(BINS).fill(0);
      for (const clip of clips) { const v = value(clip, m.key, side); if (known(v)) bins[Math.min(BINS - 1, Math.floor((v - low) / width))] += 1; }
      const most = Math.max(1, ...bins);
      return el("div", { class: "bars", style: `--c:${colour(side)};height:${systems.length > 2 ? 40 : 64}px` }, bins.map((count, i) => {
        const a = low + i * width, b = i === BINS - 1 ? high : a + width, id = `${m.key}/${side}/${i}`;
        const about = `${side}: ${count} ${count === 1 ? "clip" : "clips"} from ${number(a, m.digits)} to ${number(b, m.digits)}`;
        return el("button", { type: "button", "data-id": id, "aria-pressed": "false", title: about, "aria-label": about, tabindex: count ? "0" : "-1", onclick: () => {
          const same = state.range?.id === id;
          setRange(same ? null : { key: m.key, system: side, low: a, high: b, id });
          apply(false);
          if (!same) $("clips").scrollIntoView();
        } }, el("i", { style: `height:${count ? Math.max(3, 100 * count / most) : 0}%` }));
      }));
    });
    return el("article", { class: "plot" }, el("h3", {}, m.label), rows,
      el("div", { class: "ends" }, el("span", {}, number(low, m.digits)), el("span", {}, `${number(high, m.digits)}${unit(m)}`)));
  }
  function plots() {
    const drawn = clips.length > 2 ? main.map(plot).filter(Boolean) : [];
    if (drawn.length) $("plots").append(...drawn);
    else $("plots").append(el("p", {}, clips.length > 2 ? "All clips have the same scores." : "Too few clips for a distribution."));
  }

  // ---- protocol ----
  function protocol() {
    const pairs = (rows) => el("dl", {}, rows.flatMap(([name, text, code]) => [el("dt", {}, name), el("dd", {}, code ? el("code", {}, String(text)) : String(text))]));
    const counted = (o) => Object.entries(o).map(([k, n]) => `${k} (${n})`).join(", ") || "none";
    const files = sides.map((side) => {
      const s = p.sides[side];
      return el("div", {}, el("h3", {}, shown(side)), pairs([["source", s.source, true], ["contents", s.content_sha256, true],
        ["samples per second", counted(s.rates)], ["length", `${s.seconds.least} to ${s.seconds.most} s, median ${s.seconds.median} s`]]));
    });
    $("how").append(
      el("div", {}, el("h3", {}, "The evaluation"), pairs([["clips", p.clips], ["clip list", p.clip_list_sha256, true], ["command", p.command || "none", true], ["at", p.at], ["took", `${p.seconds} s`],
        ["true onsets", p.onsets], ["onset detector", `librosa's, delta ${p.onset_delta}, ${p.rates.onsets} Hz`], ["spectra, networks", `${p.rates.spectra_and_networks} Hz`],
        ["frames a second", counted(p.frame_rates)], ["published versions", p.published ? "included" : "not asked for"]])),
      el("div", {}, el("h3", {}, "Networks and versions"), pairs([
        ...(p.bundle ? [["bundle", p.bundle.path, true], ["its SHA-256", p.bundle.sha256, true], ...Object.entries(p.bundle.components).map(([k, v]) => [k, v, true])] : [["bundle", "none"]]),
        ["versions", Object.entries(p.versions).map(([k, v]) => `${k} ${v}`).join(", ")]])),
      ...files,
      el("div", {}, el("h3", {}, "Not computed"), el("ul", {}, data.not_computed.map((x) => el("li", {}, `${x.what}: ${x.why}`)))));
  }

  apply();
  if (clips.length) choose(0);
  /** What lies below the first screen is drawn once it comes near it. */
  const later = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      later.unobserve(entry.target);
      ({ spread: plots, protocol })[entry.target.id]();
    }
  }, { rootMargin: "800px" });
  later.observe($("spread"));
  later.observe($("protocol"));
  requestAnimationFrame(() => { root.dataset.ready = performance.now().toFixed(0); });
})();
