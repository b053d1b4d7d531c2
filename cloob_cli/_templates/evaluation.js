// The page of `cloob eval`: scores of models side by side, classes, and confusions with examples.
(() => {
  const id = (name) => document.getElementById(name);
  const found = JSON.parse(id("results").textContent);
  id("results").remove(); // its text would be kept twice
  const { models, sets, titles, records, examples } = found;
  const one = id("one"), help = id("help"), views = { scores: [], classes: [], confusions: [] };
  let view = "scores", album = [], at = 0;
  records.sort((a, b) => a.set - b.set || a.model - b.model); // the models of a data set stand side by side
  const percent = (value) => (value === null || value === undefined ? null : Math.round(1e5 * value) / 1e3); // as columns sort it
  const textColumn = (title, value) => ({ title, value });
  const countColumn = (title, value) => ({ title, value, number: true });
  const scoreColumn = (title, value, interval, color) => ({
    title, number: true, value: (row) => percent(value(row)), draw: (row) => bar(value(row), interval(row), color(row)),
  });
  const several = (values) => new Set(values).size > 1;

  function scoreTables() {
    for (const task of new Set(records.map((record) => record.task))) {
      const rows = records.filter((record) => record.task === task);
      const names = [...new Set(rows.flatMap((row) => Object.keys(row.metrics)))];
      const columns = [
        textColumn("data set", (row) => sets[row.set]), textColumn("model", (row) => models[row.model]),
        countColumn("images", (row) => row.images),
        ...names.map((name) => scoreColumn(titles[name], (row) => row.metrics[name], (row) => row.intervals[name], (row) => row.model)),
      ];
      if (rows.some((row) => row.published !== null)) {
        columns.push(scoreColumn("published top-1", (row) => row.published, () => undefined, (row) => row.model));
      }
      if (rows.some((row) => row.skipped)) columns.push(countColumn("skipped", (row) => row.skipped));
      views.scores.push(new Table(task.replaceAll("_", " "), columns, rows, count, (row) => row.classes.length && go("classes", row.set, row.model)));
    }
  }

  function classTable() {
    const rows = new Map();
    for (const record of records) {
      for (const [name, images, recall] of record.classes) {
        const key = JSON.stringify([record.set, record.task, name]);
        if (!rows.has(key)) rows.set(key, { set: record.set, task: record.task, name, images, recall: {} });
        rows.get(key).recall[record.model] = recall;
      }
    }
    if (!rows.size) return;
    const all = [...rows.values()], shown = [...new Set(all.flatMap((row) => Object.keys(row.recall).map(Number)))].sort((a, b) => a - b);
    const values = (row) => Object.values(row.recall);
    const columns = [
      ...(several(all.map((row) => row.set)) ? [textColumn("data set", (row) => sets[row.set])] : []),
      ...(several(all.map((row) => row.task)) ? [textColumn("task", (row) => row.task.replaceAll("_", " "))] : []),
      textColumn("class", (row) => row.name), countColumn("images", (row) => row.images),
      ...shown.map((model) => scoreColumn(models[model], (row) => row.recall[model], () => undefined, () => model)),
    ];
    if (shown.length > 1) {
      columns.push(countColumn("difference", (row) => Math.round(1e3 * (Math.max(...values(row)) - Math.min(...values(row)))) / 10));
    }
    views.classes.push(new Table("Images of a class that are right, %", columns, all, count, (row) => go("confusions", row.set, null, row.name)));
  }

  function confusionTable() {
    const rows = records.flatMap((record) => record.confusions.map(([name, taken, images, shown]) => (
      { set: record.set, task: record.task, model: record.model, name, taken, images, shown })));
    if (!rows.length) return;
    const thumbnails = (row) => {
      const line = element("div", undefined, "thumbnails");
      line.append(...row.shown.map((number) => {
        const image = element("img");
        image.alt = "";
        image.title = examples[number].name;
        if (examples[number].image) image.src = examples[number].image;
        image.dataset.example = number;
        return image;
      }));
      return line;
    };
    const columns = [
      ...(several(rows.map((row) => row.set)) ? [textColumn("data set", (row) => sets[row.set])] : []),
      ...(several(rows.map((row) => row.task)) ? [textColumn("task", (row) => row.task.replaceAll("_", " "))] : []),
      ...(several(rows.map((row) => row.model)) ? [textColumn("model", (row) => models[row.model])] : []),
      textColumn("class", (row) => row.name), textColumn("taken for", (row) => row.taken),
      countColumn("images", (row) => row.images),
      { title: "examples", value: (row) => row.shown.map((number) => examples[number].name).join(" "), draw: thumbnails },
    ];
    const table = new Table("Wrong answers, the most frequent of each model and data set, then the most confident: those farthest ahead of the right class", columns, rows, count, (row) => show(row));
    table.body.addEventListener("click", (event) => {
      const number = event.target.dataset.example;
      const place = number === undefined ? -1 : album.findIndex(([row, example]) => example === Number(number) && row === table.order[event.target.closest("tr").sectionRowIndex]);
      if (place >= 0) { event.stopImmediatePropagation(); showAt(place); }
    }, true);
    views.confusions.push(table);
  }

  // --- one example
  function show(row) {
    const place = album.findIndex(([other]) => other === row);
    if (place >= 0) showAt(place);
  }

  function showAt(place) {
    if (place < 0 || place >= album.length) return;
    at = place;
    const [row, number] = album[place], example = examples[number];
    id("one-image").hidden = !example.image;
    id("one-image").src = example.image ?? "";
    id("one-name").textContent = example.name;
    id("one-link").hidden = !example.link;
    if (example.link) id("one-link").href = example.link; else id("one-link").removeAttribute("href");
    const facts = [["class", row.name], ["taken for", row.taken], ["by", models[row.model]], ["data set", sets[row.set]], ["such images", row.images]];
    id("one-facts").replaceChildren(...facts.map(([name, text]) => {
      const line = element("tr");
      line.append(element("td", name), element("td", text));
      return line;
    }));
    id("one-place").textContent = `${place + 1} of ${album.length}`;
    if (one.open) return;
    one.showModal();
    id("one-close").focus(); // so that Enter leads back
  }

  // --- controls
  const tables = () => views[view];
  const range = () => ["low", "high"].map((name) => (id(name).value === "" ? null : Number(id(name).value)));

  function choose() {
    const set = id("set").value, model = id("model").value;
    const keep = (row) => (set === "" || row.set === Number(set))
      && (model === "" || (row.model === undefined ? row.recall[model] !== undefined : row.model === Number(model)));
    for (const table of tables()) table.filter(id("find").value, keep, range());
  }

  function count() {
    const sum = (values) => values.reduce((total, value) => total + value, 0);
    id("count").textContent = `${sum(tables().map((table) => table.order.length))} of ${sum(tables().map((table) => table.rows.length))}`;
    if (view === "confusions") album = tables().flatMap((table) => table.order.flatMap((row) => row.shown.map((number) => [row, number])));
  }

  function turnTo(name) {
    view = name;
    for (const other of Object.keys(views)) {
      id(`tab-${other}`).ariaSelected = String(other === name);
      id(other).hidden = other !== name;
    }
    choose();
    id("main").scrollTop = 0;
    id("main").focus();
  }

  function go(name, set, model, words = "") {
    if (!views[name].length) return;
    id("set").value = String(set);
    id("model").value = model === null ? id("model").value : String(model);
    id("find").value = words;
    for (const control of ["low", "high"]) id(control).value = "";
    turnTo(name);
  }

  function move(step) {
    const stops = [...id(view).querySelectorAll("tbody tr, button.more")].filter((stop) => !stop.hidden);
    if (!stops.length) return;
    const place = stops.indexOf(document.activeElement);
    stops[Math.max(0, Math.min(stops.length - 1, place + step))].focus();
  }

  scoreTables();
  classTable();
  confusionTable();
  const options = (names) => [new Option("all", ""), ...names.map((name, number) => new Option(name, String(number)))];
  id("set").append(...options(sets));
  id("model").append(...options(models));
  id("set-box").hidden = sets.length < 2;
  id("model-box").hidden = models.length < 2;
  for (const name of Object.keys(views)) {
    id(name).append(...views[name].map((table) => table.box));
    id(`tab-${name}`).hidden = !views[name].length;
    id(`tab-${name}`).addEventListener("click", () => turnTo(name));
  }
  const clear = () => { id("controls").reset(); choose(); };
  id("controls").addEventListener("submit", (event) => event.preventDefault());
  id("controls").addEventListener("input", choose);
  id("show-all").addEventListener("click", clear);
  id("help-open").addEventListener("click", () => help.showModal());
  id("help-close").addEventListener("click", () => help.close());
  id("one-close").addEventListener("click", () => one.close());
  id("one-before").addEventListener("click", () => showAt(at - 1));
  id("one-next").addEventListener("click", () => showAt(at + 1));

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const tag = event.target.tagName;
    if (tag === "INPUT" || tag === "SELECT") {
      if (event.key === "Escape") id("main").focus();
      return;
    }
    const line = document.activeElement.closest?.("tbody tr");
    const table = tables().find((other) => other.body === line?.parentElement);
    const moves = one.open ? { ArrowLeft: () => showAt(at - 1), ArrowRight: () => showAt(at + 1), Enter: () => one.close() } : {
      ArrowUp: () => move(-1), ArrowDown: () => move(1), Home: () => move(-Infinity), End: () => move(Infinity),
      "/": () => id("find").focus(), "?": () => help.showModal(), x: clear,
      s: () => { for (const other of tables()) if (other.sorted !== null) other.sort(other.sorted, !other.descending); },
    };
    if (!one.open) Object.keys(views).forEach((name, number) => { if (views[name].length) moves[number + 1] = () => turnTo(name); });
    if (!one.open && table) moves.Enter = () => table.openAt(line);
    if (moves[event.key] && !(event.key === "Enter" && (tag === "BUTTON" || tag === "A"))) {
      event.preventDefault();
      moves[event.key]();
    }
  });

  turnTo("scores");
})();
