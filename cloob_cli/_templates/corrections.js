// Labels that somebody chose for images: kept by the browser, and exported as CSV with the columns path and label.
class Corrections {
  constructor(id, rows, base) {
    this.key = `cloob-report-${id}`;
    this.rows = rows;
    this.base = base;
    this.chosen = new Map(); // number of an item -> label
    try {
      for (const [item, label] of JSON.parse(localStorage.getItem(this.key) || "[]")) {
        if (Number.isInteger(item) && rows[item] && typeof label === "string") this.chosen.set(item, label);
      }
    } catch { /* a browser that keeps nothing for pages from files */ }
  }

  label(item) { return this.chosen.get(item) ?? this.rows[item].l ?? ""; }

  choose(item, label) {
    if (label === null) this.chosen.delete(item); else this.chosen.set(item, label);
    try { localStorage.setItem(this.key, JSON.stringify([...this.chosen])); } catch { /* as above */ }
  }

  csv() {
    const cell = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [...this.chosen].sort((a, b) => a[0] - b[0]).map(
      ([item, label]) => `${cell(this.whole(this.rows[item].p))},${cell(label)}\n`);
    return `path,label\n${lines.join("")}`;
  }

  // The whole path, so that it does not matter where the exported file is kept.
  whole(path) {
    const windows = /^[A-Za-z]:\\|^\\\\/.test(this.base);
    if (windows ? /^[A-Za-z]:[\\/]|^[\\/]/.test(path) : path.startsWith("/")) return path;
    const separator = windows ? "\\" : "/";
    return this.base.endsWith(separator) ? this.base + path : this.base + separator + path;
  }

  export(name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([this.csv()], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}
