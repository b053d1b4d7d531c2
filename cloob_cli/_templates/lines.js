// Where cards and headings stand. Only those in sight are elements of the page, so that ten thousand cost no more than
// a screenful.
class Lines {
  static CARD = [176, 216]; // width and height with the gap
  static HEADING = 40;

  // `order`: numbers of items; `section`: an item's number -> its heading, or null for a page without headings.
  constructor(order, section, width) {
    this.order = order;
    this.columns = Math.max(1, Math.floor(width / Lines.CARD[0]));
    this.lines = []; // {top, height, heading} or {top, height, first, count}: places in `order`
    this.lineOf = new Uint32Array(order.length); // place in `order` -> its line
    let top = 8, place = 0;
    while (place < order.length) {
      let end = order.length;
      if (section) {
        const name = section(order[place]);
        end = place;
        while (end < order.length && section(order[end]) === name) end += 1;
        this.lines.push({ top, height: Lines.HEADING, heading: name, size: end - place });
        top += Lines.HEADING;
      }
      for (; place < end; place += this.columns) {
        const count = Math.min(this.columns, end - place);
        this.lineOf.fill(this.lines.length, place, place + count);
        this.lines.push({ top, height: Lines.CARD[1], first: place, count });
        top += Lines.CARD[1];
      }
      place = end;
    }
    this.height = top + 8;
  }

  // The lines that are in sight, and one more on both sides.
  between(top, bottom) {
    let low = 0, high = this.lines.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.lines[middle].top + this.lines[middle].height < top) low = middle + 1; else high = middle;
    }
    let end = low;
    while (end < this.lines.length && this.lines[end].top <= bottom) end += 1;
    return this.lines.slice(Math.max(0, low - 1), end + 1);
  }

  // The place one line of cards up (-1) or down (1) of a place.
  beside(place, step) {
    const at = this.lineOf[place];
    const column = place - this.lines[at].first;
    for (let next = at + step; next >= 0 && next < this.lines.length; next += step) {
      const line = this.lines[next];
      if (line.heading === undefined) return line.first + Math.min(column, line.count - 1);
    }
    return step < 0 ? 0 : this.order.length - 1;
  }
}
