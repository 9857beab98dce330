"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  const stage = $("stage");

  /** Make an element: attributes, then children; text is never read as HTML. */
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || (value === false && !name.startsWith("aria-"))) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") node.style.cssText = value;
      else node.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
    }
    node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
    return node;
  }
  const icon = (path) => {
    const holder = document.createElement("template");
    holder.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true">${path}</svg>`;
    return holder.content.firstChild;
  };
  const number = (value, digits) => value.toFixed(digits).replace("-", "−");
  const span = (s) => (s < 120 ? `${+s.toPrecision(3)} s` : `${Math.round(s / 60)} min`);
  const size = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${+(bytes / 2 ** 20).toPrecision(3)} MiB`);

  // ---- theme ----
  const stored = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
  const store = (key, value) => { try { localStorage.setItem(key, value); } catch { /* private windows may have none */ } };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = stored("mfm-theme") || (dark.matches ? "dark" : "light");
  dark.addEventListener("change", (e) => { if (!stored("mfm-theme")) root.dataset.theme = e.matches ? "dark" : "light"; });
  $("theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    store("mfm-theme", root.dataset.theme);
  });

  // ---- requests ----
  /** Ask the server; a refusal becomes an Error with the server's own words. */
  async function ask(path, options) {
    let answer;
    try { answer = await fetch(path, options); } catch { throw new Error("The server does not answer. Is it still running?"); }
    if (answer.ok) return answer.status === 204 ? null : answer.json();
    let words = `The server answers ${answer.status}.`;
    try { words = (await answer.json()).detail || words; } catch { /* a proxy may answer without JSON */ }
    throw Object.assign(new Error(words), { status: answer.status });
  }

  // ---- what the server offers ----
  let server = null;
  async function offer() {
    server = await ask("api");
    $("allowed").textContent = `MP4, MOV, MKV, WebM or AVI, up to ${span(server.seconds)} and ${size(server.upload_bytes)}`;
    $("facts").textContent = `Choose a video, and hear what it may have sounded like. Files are removed after ${span(server.keep_seconds)}.`;
    $("steps").append(...server.steps.map((n) => el("option", { value: n, selected: n === server.default_steps }, n === server.default_steps ? `${n} (default)` : String(n))));
    const range = $("guidance");
    Object.assign(range, { min: 0, max: server.guidance.length - 1, step: 1, value: server.guidance.indexOf(server.default_guidance) });
    const guided = () => { $("guided").value = number(server.guidance[range.value], 1); range.setAttribute("aria-valuetext", $("guided").value); };
    range.addEventListener("input", guided);
    guided();
    for (let n = 1; n <= server.candidates; n += 1) $("candidates").append(el("option", { value: n }, n === 1 ? "1" : `best of ${n}`));
    $("texts").hidden = !server.prompts;
    $("no-texts").hidden = server.prompts;
    for (const name of ["prompt", "negative_prompt"]) $(name).maxLength = server.prompt_characters;
  }

  // ---- the form ----
  let file = null, preview = null;
  function problem(words) {
    $("problem").hidden = !words;
    $("problem").textContent = words || "";
  }
  function choose(chosen) {
    if (!chosen) return;
    if (server && chosen.size > server.upload_bytes) {
      problem(`${chosen.name} has ${size(chosen.size)}, and ${size(server.upload_bytes)} are allowed: cut or compress it.`);
      return;
    }
    problem("");
    file = chosen;
    if (preview) URL.revokeObjectURL(preview);
    preview = URL.createObjectURL(file);
    $("preview").src = preview;
    $("preview").hidden = false;
    $("preview").play().catch(() => {});
    $("chosen").textContent = file.name;
    $("allowed").textContent = `${size(file.size)}. Choose another one, or drop it here.`;
    $("drop").classList.add("full");
  }
  $("preview").addEventListener("error", () => { $("preview").hidden = true; });
  $("file").addEventListener("change", () => choose($("file").files[0]));
  let within = 0;
  addEventListener("dragenter", (e) => { e.preventDefault(); within += 1; $("drop").classList.add("over"); });
  addEventListener("dragleave", () => { within = Math.max(0, within - 1); if (!within) $("drop").classList.remove("over"); });
  addEventListener("dragover", (e) => e.preventDefault());
  addEventListener("drop", (e) => {
    e.preventDefault();
    within = 0;
    $("drop").classList.remove("over");
    choose(e.dataTransfer.files[0]);
  });
  $("dice").addEventListener("click", () => { $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]; });
  $("form").addEventListener("submit", (e) => {
    e.preventDefault();
    if (!file) { problem("Choose a video first."); $("file").focus(); return; }
    if (!$("seed").checkValidity() || $("seed").value === "") { problem("The seed is a whole number from 0 to 4294967295."); $("seed").focus(); return; }
    problem("");
    const form = new FormData();
    for (const name of ["seed", "steps", "candidates", ...(server.prompts ? ["prompt", "negative_prompt"] : [])]) {
      if ($(name).value.trim()) form.append(name, $(name).value);
    }
    form.append("guidance", server.guidance[$("guidance").value]);
    form.append("video", file, file.name);
    upload(form);
    if (matchMedia("(max-width: 940px)").matches) stage.scrollIntoView();
  });

  // ---- upload, queue, progress ----
  let current = null, watching = null;
  function stop() {
    watching?.close();
    watching = null;
    player?.end();
    player = null;
  }
  function underWay(title, about, share, cancel, word = "Cancel") {
    const meter = el("div", { class: share === null ? "meter waits" : "meter", role: "progressbar", "aria-label": title, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": share === null ? null : Math.round(100 * share) }, el("i", { style: share === null ? "" : `width:${100 * share}%` }));
    stage.replaceChildren(el("div", { class: "under-way" }, el("b", {}, title), meter, about && el("p", {}, about), cancel && el("button", { class: "plain", type: "button", onclick: cancel }, word)));
  }
  function empty() {
    stop();
    current = null;
    stage.replaceChildren(el("div", { class: "empty" }, icon('<path d="M1 7v2M3 5v6M5 3v10M7 6v4M9 4v8M11 2v12M13 5v6M15 7v2"/>'), el("span", {}, "The sound appears here, beside the video's own.")));
    list();
  }
  function failed(words) {
    stop();
    stage.replaceChildren(el("div", { class: "under-way" }, el("b", {}, "There is no sound"), el("p", { class: "problem", role: "alert" }, words)));
  }
  function upload(form) {
    stop();
    current = null;
    $("send").disabled = true;
    const request = new XMLHttpRequest();
    request.open("POST", "api/jobs");
    request.responseType = "json";
    const show = (share) => underWay("Uploading", `${file.name}, ${size(file.size)}`, share, () => request.abort());
    request.upload.addEventListener("progress", (e) => { if (e.lengthComputable) show(e.loaded / e.total); });
    request.upload.addEventListener("load", () => underWay("Looking at the video", file.name, null, () => request.abort()));
    request.addEventListener("loadend", () => { $("send").disabled = false; });
    request.addEventListener("abort", empty);
    request.addEventListener("error", () => failed("The upload was cut off. The server may refuse a video of this size, or not run any more."));
    request.addEventListener("load", () => {
      if (request.status !== 202) { failed(request.response?.detail || `The server answers ${request.status}.`); return; }
      remember(request.response);
      open(request.response.id);
    });
    show(0);
    request.send(form);
  }
  const STAGES = { compiling: "Compiling for these settings", decoding: "Reading the video", generating: "Making the sound", writing: "Writing the files" };
  function show(job) {
    if (current !== job.id) return;
    const cancel = () => forget(job.id);
    if (job.state === "queued") underWay(job.position > 1 ? `Number ${job.position} in the queue` : "Next in the queue", job.name, null, cancel);
    else if (job.state === "running") underWay(STAGES[job.stage] || "Making the sound", job.name, job.stage === "compiling" ? null : job.progress, cancel);
    else if (job.state === "done") done(job);
    else if (job.state === "failed") failed(job.error);
    else empty();
    root.dataset.state = job.state;
  }
  /** Follow a job until it is over; the address of the page leads to it. */
  function open(id) {
    stop();
    current = id;
    history.replaceState(null, "", `#job=${id}`);
    list();
    watching = new EventSource(`api/jobs/${id}/events`);
    watching.addEventListener("message", (e) => {
      const job = JSON.parse(e.data);
      if (!["queued", "running"].includes(job.state)) { watching?.close(); watching = null; }
      show(job);
    });
    watching.addEventListener("error", () => {
      if (current !== id || watching?.readyState !== EventSource.CLOSED) return;
      ask(`api/jobs/${id}`).then(show, (error) => { if (error.status === 404) drop(id); failed(error.status === 404 ? "This sound is gone: its files are removed." : error.message); });
    });
  }

  // ---- recent ones, in this browser ----
  const KEPT = 12;
  const recent = () => { try { return JSON.parse(stored("mfm-recent") || "[]"); } catch { return []; } };
  function remember(job) { store("mfm-recent", JSON.stringify([{ id: job.id, name: job.name, at: job.created }, ...recent()].slice(0, KEPT))); }
  function drop(id) { store("mfm-recent", JSON.stringify(recent().filter((each) => each.id !== id))); list(); }
  /** Cancel a job, or remove what was made. */
  async function forget(id) {
    try { await ask(`api/jobs/${id}`, { method: "DELETE" }); } catch (error) { if (error.status !== 404) { problem(error.message); return; } }
    drop(id);
    if (current === id) { history.replaceState(null, "", location.pathname); empty(); }
  }
  function list() {
    const known = recent().filter((each) => !server || Date.now() / 1000 - each.at < server.keep_seconds + 3600);
    $("none").hidden = known.length > 0;
    $("list").replaceChildren(...known.map((each) => el("li", { "aria-current": each.id === current },
      el("button", { class: "open", type: "button", onclick: () => { open(each.id); stage.scrollIntoView({ block: "nearest" }); } }, el("b", {}, each.name), el("small", {}, new Date(1000 * each.at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }))),
      el("button", { class: "quiet", type: "button", "aria-label": `Remove ${each.name}`, title: "Remove it from the server", onclick: () => forget(each.id) }, icon('<path d="m4 4 8 8M12 4l-8 8"/>')))));
  }

  // ---- the player: one transport, and one of two sounds is heard under the picture ----
  const PLAY = '<path d="M4.5 2.8v10.4c0 .5.6.8 1 .5l7.6-5.2a.6.6 0 0 0 0-1L5.5 2.3c-.4-.3-1 0-1 .5z"/>';
  const PAUSE = '<path d="M4 2.5h3v11H4zM9 2.5h3v11H9z"/>';
  const DOWN = '<path d="M8 2.5v8m0 0L4.5 7M8 10.5 11.5 7M3 13.5h10"/>';
  let player = null;
  class Player {
    constructor(job, analysis) {
      this.length = analysis.seconds;
      this.sounds = analysis.sounds;
      this.at = 0;
      this.loop = true;
      this.media = this.sounds.map((sound) => {
        const audio = new Audio(sound.sound);
        audio.preload = "auto";
        audio.addEventListener("ended", () => this.ended());
        return audio;
      });
      this.video = el("video", { src: job.files["sound.mp4"], playsinline: true, preload: "auto", disablepictureinpicture: true, "aria-label": "The video", onclick: () => this.toggle() });
      this.video.muted = true;
      this.video.addEventListener("error", () => this.video.replaceWith(el("p", {}, "This browser cannot show the picture. Its sound plays all the same, and the file can be downloaded.")));
      this.line = el("div", { class: "playing" });
      this.button = el("button", { class: "play", id: "play", type: "button", "aria-label": "Play", onclick: () => this.toggle() }, icon(PLAY));
      this.clock = el("span", { class: "clock", id: "clock" });
      this.lanes = this.sounds.map((sound, index) => this.lane(sound, index));
    }
    lane(sound, index) {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const place = (time) => (100 * time / this.length).toFixed(3);
      svg.innerHTML = sound.onsets.map((t) => `<line class="onset" x1="${place(t)}%" x2="${place(t)}%" y1="0" y2="14"/><circle class="tip" cx="${place(t)}%" cy="15" r="2.6"/>`).join("");
      svg.setAttribute("aria-hidden", "true");
      const loud = sound.loudness === null ? "silent" : `${number(sound.loudness, 1)} LUFS`;
      return el("button", { type: "button", class: `lane ${sound.name}`, "aria-pressed": index === 0, "aria-label": `Hear the ${sound.name} sound`, onclick: (e) => {
        const box = e.currentTarget.getBoundingClientRect();
        this.hear(index, e.detail ? (e.clientX - box.left) / box.width * this.length : undefined);
        this.play();
      } }, el("img", { src: sound.picture, alt: "", draggable: "false", style: `width:${Math.min(100, 100 * sound.seconds / this.length)}%` }), svg,
      el("span", { class: "name" }, el("span", { class: "dot" }), `${sound.name} · ${sound.onsets.length} ${sound.onsets.length === 1 ? "onset" : "onsets"} · ${loud}`, el("kbd", {}, String(index + 1))));
    }
    get sound() { return this.media[this.at]; }
    hear(index, time) {
      if (!this.media[index]) return;
      const old = this.sound, playing = !old.paused, at = time ?? old.currentTime;
      if (index !== this.at) old.pause();
      this.at = index;
      this.sound.currentTime = Math.max(0, Math.min(at, this.sounds[index].seconds - 0.01));
      this.video.currentTime = this.sound.currentTime;
      if (playing) this.sound.play().catch(() => {});
      this.lanes.forEach((lane, i) => lane.setAttribute("aria-pressed", i === index));
      this.tick();
    }
    play() {
      this.video.currentTime = this.sound.currentTime;
      this.video.play().catch(() => {});
      this.sound.play().catch(() => {});
      this.button.replaceChildren(icon(PAUSE));
      this.button.setAttribute("aria-label", "Pause");
      cancelAnimationFrame(this.frame);
      this.tick();
    }
    pause() {
      for (const each of this.media) each.pause();
      this.video.pause();
      this.button.replaceChildren(icon(PLAY));
      this.button.setAttribute("aria-label", "Play");
    }
    toggle() { if (this.sound.paused) this.play(); else this.pause(); }
    ended() {
      this.sound.currentTime = 0;
      if (this.loop) this.play(); else { this.pause(); this.tick(); }
    }
    tick() {
      const time = this.sound.currentTime;
      this.line.style.left = `${100 * time / this.length}%`;
      this.clock.textContent = `${number(time, 2)} / ${number(this.length, 2)} s`;
      if (!this.sound.paused) this.frame = requestAnimationFrame(() => this.tick());
    }
    end() {
      cancelAnimationFrame(this.frame);
      this.pause();
      for (const each of [...this.media, this.video]) { each.removeAttribute("src"); each.load(); }
    }
  }
  async function done(job) {
    underWay("Listening to the sound", job.name, 1, null);
    let analysis;
    try { analysis = await ask(job.files["analysis.json"]); } catch (error) { if (current === job.id) failed(error.message); return; }
    if (current !== job.id) return;
    player?.end();
    player = new Player(job, analysis);
    const s = job.settings, own = job.has_sound && analysis.sounds.length > 1;
    const told = [`seed ${s.seed}`, `${s.steps ?? server.default_steps} steps`, `guidance ${number(s.guidance ?? server.default_guidance, 1)}`, s.candidates > 1 && `best of ${s.candidates}`, s.prompt && `“${s.prompt}”`, s.negative_prompt && `not “${s.negative_prompt}”`].filter(Boolean);
    const load = (name, words, kind) => el("a", { class: kind, href: `${job.files[name]}?download=true`, download: "" }, icon(DOWN), words);
    stage.replaceChildren(
      el("div", { class: "head" }, el("h3", {}, job.name, el("small", {}, `${number(job.seconds, 2)} s · ${told.join(" · ")}`))),
      el("div", { class: "film" }, player.video),
      el("div", { class: "timed" }, player.lanes, player.line),
      el("div", { class: "axis", "aria-hidden": "true" }, [0, .25, .5, .75, 1].map((x) => el("span", {}, `${number(x * job.seconds, 2)} s`))),
      el("div", { class: "transport" }, player.button, player.clock,
        el("label", { class: "repeat" }, el("input", { type: "checkbox", checked: true, onchange: (e) => { player.loop = e.target.checked; } }), "repeat"),
        el("div", { class: "keys" }, el("span", {}, el("kbd", {}, "space"), " play"), own && el("span", {}, el("kbd", {}, "1"), " ", el("kbd", {}, "2"), " switch while it plays"))),
      el("p", { class: "about" }, icon('<line x1="8" x2="8" y1="0" y2="10" stroke="#fff" stroke-width="1.6"/><circle cx="8" cy="11" r="2.4" fill="#fff"/>'), "detected onset. ",
        own ? "Choose a spectrogram to hear its sound from there." : job.has_sound ? "The video's own sound cannot be read." : "The video has no sound of its own to compare with."),
      job.notes.length > 0 && el("ul", { class: "notes" }, job.notes.map((text) => el("li", {}, text))),
      el("div", { class: "ends" }, load("sound.mp4", "Video (MP4)", "primary"), load("sound.wav", "Sound (WAV)", "plain"),
        el("button", { class: "plain last", type: "button", onclick: () => forget(job.id) }, "Remove")));
    player.tick();
  }
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || !player || e.target.closest?.("input:not([type=range]):not([type=checkbox]), select")) return;
    if (e.key === " " && !e.target.closest?.("button:not(.lane), a, input")) { e.preventDefault(); player.toggle(); }
    else if (/^[12]$/.test(e.key)) player.hear(Number(e.key) - 1);
  });

  // ---- API ----
  const here = `${location.origin}${location.pathname.replace(/[^/]*$/, "")}`;
  $("curl").textContent = [
    `id=$(curl -s -F video=@clip.mp4 -F seed=1 ${here}api/jobs | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')`,
    `curl -f -o sound.mp4 "${here}api/jobs/$id/sound.mp4?wait=600"`,
    `curl -X DELETE ${here}api/jobs/$id`,
  ].join("\n");

  // ---- begin ----
  function fromAddress() {
    const id = /^#job=([\w-]+)$/.exec(location.hash)?.[1];
    if (id && id !== current) open(id);
  }
  addEventListener("hashchange", fromAddress);
  empty();
  offer().then(() => { list(); fromAddress(); }, (error) => problem(error.message)).finally(() => { root.dataset.ready = performance.now().toFixed(0); });
})();
