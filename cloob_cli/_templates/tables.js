// Tables to sort, filter and walk through with keys. What comes from names and labels becomes text, never markup.
const element = (tag, text, className) => {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
};

class Table {
  static STEP = 200; // rows that are made into elements at once

  // columns: {title, value(row): what is sorted, searched and shown; draw(row): an element instead of that text;
  // number: true where it is sorted as one}. changed() is called when the table was drawn, open(row) on Enter or a click.
  constructor(caption, columns, rows, changed, open) {
    Object.assign(this, { columns, rows, changed, open, sorted: null, descending: false, order: [], words: "", keep: () => true });
    this.range = [null, null];
    this.box = element("section");
    const table = element("table", undefined, "sortable"), head = element("tr");
    if (caption) table.append(element("caption", caption));
    this.heads = columns.map((column, at) => {
      const cell = element("th", undefined, column.number ? "number" : ""), button = element("button", column.title);
      cell.scope = "col";
      button.type = "button";
      button.addEventListener("click", () => this.sort(at, this.sorted === at ? !this.descending : Boolean(column.number)));
      cell.append(button);
      head.append(cell);
      return cell;
    });
    table.append(element("thead"), this.body = element("tbody"));
    table.tHead.append(head);
    this.more = element("button", "", "more");
    this.more.type = "button";
    this.more.addEventListener("click", () => { const first = this.drawn; this.drawMore(); this.body.rows[first]?.focus(); });
    this.empty = element("p", "Nothing here is as the controls above ask.", "empty");
    this.box.append(table, this.more, this.empty);
    this.body.addEventListener("click", (event) => this.openAt(event.target.closest("tr")));
  }

  // The row of an element of this table, given to open().
  openAt(line) { if (line && this.open) this.open(this.order[line.sectionRowIndex]); }

  sort(at, descending) {
    this.sorted = at;
    this.descending = descending;
    this.draw();
  }

  // words: what the text of a row must hold. keep(row): what else. range: [low, high] of the column that is sorted by.
  filter(words, keep, range) {
    this.words = words.toLowerCase();
    this.keep = keep;
    this.range = range;
    this.draw();
  }

  draw() {
    const by = this.columns[this.sorted], [low, high] = this.range;
    const ranged = by?.number && (low !== null || high !== null);
    this.order = this.rows.filter((row) => {
      if (!this.keep(row)) return false;
      if (ranged) {
        const value = by.value(row);
        if (value === null || (low !== null && value < low) || (high !== null && value > high)) return false;
      }
      return !this.words || this.columns.map((column) => column.value(row)).join("\n").toLowerCase().includes(this.words);
    });
    if (by) {
      const sign = this.descending ? -1 : 1, collator = new Intl.Collator(undefined, { numeric: true });
      const place = new Map(this.order.map((row, at) => [row, at]));
      this.order.sort((a, b) => {
        const x = by.value(a), y = by.value(b);
        if (x === null || y === null) return (x === null) - (y === null) || place.get(a) - place.get(b); // last, both ways
        return sign * (by.number ? x - y : collator.compare(x, y)) || place.get(a) - place.get(b);
      });
    }
    this.heads.forEach((cell, at) => {
      if (at === this.sorted) cell.ariaSort = this.descending ? "descending" : "ascending"; else cell.removeAttribute("aria-sort");
    });
    this.drawn = 0;
    this.body.replaceChildren();
    this.empty.hidden = this.order.length > 0;
    this.drawMore();
    this.changed();
  }

  drawMore() {
    const end = Math.min(this.drawn + Table.STEP, this.order.length);
    for (; this.drawn < end; this.drawn += 1) {
      const row = this.order[this.drawn], line = element("tr");
      line.tabIndex = -1;
      for (const column of this.columns) {
        const value = column.value(row), cell = element("td", undefined, column.number ? "number" : "");
        if (column.draw && value !== null) cell.append(column.draw(row)); else cell.textContent = value ?? "–";
        line.append(cell);
      }
      this.body.append(line);
    }
    const left = this.order.length - this.drawn;
    this.more.hidden = left === 0;
    this.more.textContent = `Show ${Math.min(left, Table.STEP)} more of ${left}`;
  }
}

// A bar of a fraction in [0, 1] with its text, and a line from one end of its interval to the other.
function bar(value, interval, color) {
  const made = element("div", undefined, "score"), track = element("span", undefined, "track");
  const text = (fraction) => (100 * fraction).toFixed(1);
  const part = (from, to, name) => {
    const found = element("span", undefined, name);
    found.style.left = `${100 * Math.max(0, from)}%`;
    found.style.width = `${100 * (Math.min(1, to) - Math.max(0, from))}%`;
    return found;
  };
  track.append(part(0, value, `fill color-${color % 6}`));
  if (interval) track.append(part(interval[0], interval[1], "interval"));
  made.append(element("span", text(value), "value"));
  if (interval) made.append(element("span", `${text(interval[0])} to ${text(interval[1])}`, "ends"));
  made.append(track);
  return made;
}
