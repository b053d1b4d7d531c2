// The page of images. Everything that comes from names and labels becomes text, never markup.
(() => {
  const id = (name) => document.getElementById(name);
  const read = (name) => JSON.parse(id(name).textContent);
  const settings = read("settings"), rows = read("rows");
  id("rows").remove(); // its text would be kept twice
  const corrections = new Corrections(settings.id, rows, settings.base);
  const editable = settings.labels.length > 0;
  const view = id("view"), room = id("room"), one = id("one"), help = id("help");
  let order = [], lines = new Lines([], null, 1), here = 0, drawn = new Map();

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const number = (value) => (value === null || value === undefined ? "–" : Number.isInteger(value) ? String(value) : value.toFixed(4));
  const field = () => Number(id("field").value);
  const value = (item, index) => { const all = rows[item].v; return all ? all[index] : null; };

  // --- what is shown, in which order
  function chooseRows(stay = false) {
    const words = id("find").value.toLowerCase(), label = id("label").value, at = field();
    const low = id("low").value === "" ? null : Number(id("low").value);
    const high = id("high").value === "" ? null : Number(id("high").value);
    const onlyChosen = editable && id("chosen").checked;
    const focused = order[here];
    order = [];
    for (let item = 0; item < rows.length; item += 1) {
      if (onlyChosen && !corrections.chosen.has(item)) continue;
      if (label !== "" && `=${corrections.label(item)}` !== label) continue;
      if (low !== null || high !== null) {
        const score = value(item, at);
        if (score === null || (low !== null && score < low) || (high !== null && score > high)) continue;
      }
      if (words && !`${rows[item].p}\n${corrections.label(item)}\n${rows[item].s ?? ""}`.toLowerCase().includes(words)) continue;
      order.push(item);
    }
    sortRows();
    const place = order.indexOf(focused);
    here = place >= 0 ? place : stay ? Math.max(0, Math.min(here, order.length - 1)) : 0;
    const chosen = corrections.chosen.size;
    id("count").textContent = `${order.length} of ${rows.length}` + (chosen ? `, ${chosen} chosen` : "");
    if (editable) id("export").disabled = chosen === 0;
    layOut();
  }

  function sortRows() {
    const by = id("sort").value, sign = id("descending").checked ? -1 : 1;
    const text = by === "path" ? (item) => rows[item].p : by === "label" ? (item) => corrections.label(item) : null;
    if (by === "order") { if (sign < 0) order.reverse(); return; }
    if (text) {
      const collator = new Intl.Collator(undefined, { numeric: true });
      const keys = new Map(order.map((item) => [item, text(item)]));
      order.sort((a, b) => sign * collator.compare(keys.get(a), keys.get(b)) || a - b);
      return;
    }
    const at = Number(by);
    order.sort((a, b) => { // what has no score stands last, both ways around
      const x = value(a, at), y = value(b, at);
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * (x - y) || a - b;
    });
  }

  // --- cards
  function layOut() {
    const headed = settings.sections && id("sort").value === "order";
    lines = new Lines(order, headed ? (item) => rows[item].s ?? "" : null, view.clientWidth);
    room.style.height = `${lines.height}px`;
    room.replaceChildren();
    drawn = new Map();
    draw();
  }

  function draw() {
    const wanted = new Map();
    for (const line of lines.between(view.scrollTop, view.scrollTop + view.clientHeight)) {
      if (line.heading !== undefined) { wanted.set(`h${line.top}`, [line, null]); continue; }
      for (let place = line.first; place < line.first + line.count; place += 1) wanted.set(place, [line, place]);
    }
    for (const [key, made] of drawn) if (!wanted.has(key)) { made.remove(); drawn.delete(key); }
    for (const [key, [line, place]] of wanted) {
      if (drawn.has(key)) continue;
      const made = place === null ? element("div", `${line.heading} (${line.size})`, "heading") : card(place);
      const left = place === null ? 0 : 8 + (place - line.first) * Lines.CARD[0];
      made.style.transform = `translate(${left}px, ${line.top}px)`;
      drawn.set(key, made);
      room.append(made);
    }
    mark();
  }

  function card(place) {
    const item = order[place], row = rows[item], made = element("div", undefined, "card");
    made.id = `card-${place}`;
    made.dataset.place = place;
    made.setAttribute("role", "option");
    made.setAttribute("aria-setsize", order.length);
    made.setAttribute("aria-posinset", place + 1);
    made.title = row.p;
    const frame = element("div", undefined, "frame");
    if (row.t) {
      const image = element("img");
      image.src = row.t;
      image.alt = "";
      frame.append(image);
    }
    const chosen = corrections.chosen.get(item);
    const state = chosen === undefined ? "" : chosen === row.l ? " confirmed" : " changed";
    made.append(frame);
    if (corrections.label(item)) made.append(element("div", (state ? (state === " changed" ? "✎ " : "✓ ") : "") + corrections.label(item), `name${state}`));
    if (settings.fields.length) made.append(element("div", `${settings.fields[field()]} ${number(value(item, field()))}`, "score"));
    made.append(element("div", row.p.slice(Math.max(row.p.lastIndexOf("/"), -1) + 1), "path"));
    return made;
  }

  function mark() {
    for (const [key, made] of drawn) {
      made.classList.toggle("here", key === here);
      if (made.dataset.place !== undefined) made.setAttribute("aria-selected", key === here);
    }
    if (order.length) view.setAttribute("aria-activedescendant", `card-${here}`);
    else view.removeAttribute("aria-activedescendant");
  }

  function go(place) {
    if (!order.length) return;
    here = Math.min(Math.max(place, 0), order.length - 1);
    const line = lines.lines[lines.lineOf[here]];
    if (line.top < view.scrollTop) view.scrollTop = line.top - 8;
    else if (line.top + line.height > view.scrollTop + view.clientHeight) view.scrollTop = line.top + line.height - view.clientHeight;
    draw();
    if (one.open) showOne();
  }

  // --- one image
  function showOne() {
    const item = order[here], row = rows[item];
    if (!row) return;
    id("one-image").src = row.t ?? "";
    id("one-image").hidden = !row.t;
    id("one-path").textContent = row.p;
    id("one-link").href = row.h;
    id("one-label").textContent = corrections.label(item);
    const values = settings.fields.map((name, index) => [name, number(value(item, index))]);
    const lines = [...values, ...(row.s ? [["group", row.s]] : []), ...(row.d ?? [])];
    id("one-values").replaceChildren(...lines.map(([name, text]) => {
      const line = element("tr");
      line.append(element("td", name), element("td", text));
      return line;
    }));
    if (editable) {
      id("one-choices").replaceChildren(...(row.c ?? []).slice(0, 9).map(([label, share], index) => {
        const button = element("button", `${index + 1}  ${label}  ${(100 * share).toFixed(1)} %`);
        button.type = "button";
        button.addEventListener("click", () => choose(label));
        return button;
      }));
      id("one-other").value = "";
      id("one-undo").disabled = !corrections.chosen.has(item);
    }
    if (!one.open) one.showModal();
  }

  function choose(label) {
    if (!editable || !order.length) return;
    corrections.choose(order[here], label);
    countLabels();
    const shown = one.open, top = view.scrollTop;
    chooseRows(true);
    view.scrollTop = top;
    if (shown) { if (order.length) showOne(); else one.close(); }
    draw();
  }

  const confirm = () => { if (order.length) choose(corrections.label(order[here])); };
  const save = () => { if (editable && corrections.chosen.size) corrections.export("labels.csv"); };

  // --- controls
  function countLabels() {
    const counts = new Map();
    for (let item = 0; item < rows.length; item += 1) {
      const label = corrections.label(item);
      if (label) counts.set(label, (counts.get(label) ?? 0) + 1);
    }
    const before = id("label").value;
    const names = [...counts.keys()].sort(new Intl.Collator(undefined, { numeric: true }).compare);
    id("label").replaceChildren(new Option("all", ""), ...names.map((name) => new Option(`${name} (${counts.get(name)})`, `=${name}`)));
    id("label").value = before;
    if (id("label").value !== before || id("label").selectedIndex < 0) id("label").value = "";
    id("label-box").hidden = names.length === 0;
  }

  const fields = settings.fields.map((name, index) => new Option(name, String(index)));
  id("field").append(...fields);
  const hasLabels = rows.some((row) => row.l);
  id("sort").append(new Option("order of the result", "order"), ...fields.map((option) => option.cloneNode(true)),
    ...(hasLabels ? [new Option("label", "label")] : []), new Option("path", "path"));
  for (const name of ["field-box", "low-box", "high-box"]) id(name).hidden = fields.length === 0;
  if (editable) id("labels").append(...settings.labels.map((label) => new Option(label, label)));

  id("controls").addEventListener("submit", (event) => event.preventDefault());
  id("controls").addEventListener("input", () => { view.scrollTop = 0; chooseRows(); });
  id("show-all").addEventListener("click", () => { id("controls").reset(); view.scrollTop = 0; chooseRows(); });
  view.addEventListener("scroll", draw, { passive: true });
  new ResizeObserver(() => { layOut(); go(here); }).observe(view);
  room.addEventListener("click", (event) => {
    const made = event.target.closest(".card");
    if (made) { go(Number(made.dataset.place)); view.focus(); showOne(); }
  });
  id("help-open").addEventListener("click", () => help.showModal());
  id("help-close").addEventListener("click", () => help.close());
  id("one-close").addEventListener("click", () => one.close());
  id("one-before").addEventListener("click", () => go(here - 1));
  id("one-next").addEventListener("click", () => go(here + 1));
  if (editable) {
    id("export").addEventListener("click", save);
    id("one-confirm").addEventListener("click", confirm);
    id("one-undo").addEventListener("click", () => choose(null));
    const other = () => { const text = id("one-other").value.trim(); if (text) choose(text); };
    id("one-set").addEventListener("click", other);
    id("one-other").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); other(); } });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const tag = event.target.tagName;
    if (tag === "INPUT" || tag === "SELECT") {
      if (event.key === "Escape") view.focus();
      return;
    }
    const screen = Math.max(1, Math.floor(view.clientHeight / Lines.CARD[1])) * lines.columns;
    const moves = {
      ArrowLeft: () => go(here - 1), ArrowRight: () => go(here + 1),
      ArrowUp: () => go(lines.beside(here, -1)), ArrowDown: () => go(lines.beside(here, 1)),
      Home: () => go(0), End: () => go(order.length - 1),
      PageUp: () => go(here - screen), PageDown: () => go(here + screen),
      "/": () => id("find").focus(), "?": () => help.showModal(), c: confirm, x: () => choose(null), e: save,
      s: () => { id("descending").checked = !id("descending").checked; chooseRows(); },
    };
    if (event.key === "Enter" && tag !== "BUTTON" && tag !== "A" && tag !== "SUMMARY") moves.Enter = () => (one.open ? one.close() : showOne());
    const digit = /^[1-9]$/.test(event.key) && order.length ? (rows[order[here]].c ?? [])[Number(event.key) - 1] : undefined;
    const move = digit ? () => choose(digit[0]) : moves[event.key];
    if (move && (order.length || event.key === "/" || event.key === "?" || event.key === "e")) {
      event.preventDefault();
      move();
    }
  });

  countLabels();
  chooseRows();
  view.focus();
})();
