"use strict";
// The drawing of a model's graph: modules open and close, arrow keys walk along the connections.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 170, HEIGHT = 38, ACROSS = 24, DOWN = 46;
// A graph of more rows goes on in another column.
const FOLDED = 60;

function element(name, attributes = {}, parent = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

class Drawing {
  constructor(frame) {
    this.frame = frame;
    const data = JSON.parse(frame.querySelector("script").textContent);
    // What is empty is left out of the data.
    this.nodes = data.nodes.map((node) => ({ module: "", shape: "", parameters: 0, gradient: null, ...node }));
    this.edges = data.edges;
    this.about = frame.querySelector(".about");
    this.svg = frame.querySelector("svg");
    this.layer = element("g", {}, this.svg);
    this.tip = `tip-${[...document.querySelectorAll(".graph")].indexOf(frame)}`;
    this.svg.querySelector("marker").id = this.tip;
    this.members = this.membersOfGroups();
    this.open = new Set(this.firstOpen());
    this.view = { x: 0, y: 0, scale: 1 };
    this.shown = [];
    this.current = 0;
    this.lastFault = -1;
    this.listen();
    this.draw(true);
  }

  // Operations by the path of each module around them; a module with one operation is no group.
  membersOfGroups() {
    const members = new Map();
    this.nodes.forEach((node, number) => {
      const parts = node.module ? node.module.split(".") : [];
      for (let length = 1; length <= parts.length; length++) {
        const path = parts.slice(0, length).join(".");
        if (!members.has(path)) members.set(path, []);
        members.get(path).push(number);
      }
    });
    for (const [path, own] of members) if (own.length < 2) members.delete(path);
    return members;
  }

  groupsOf(node) {
    const parts = node.module ? node.module.split(".") : [];
    return parts.map((_, length) => parts.slice(0, length + 1).join("."))
      .filter((path) => this.members.has(path));
  }

  // As many levels as can be read at once, each as a whole.
  firstOpen() {
    let open = new Set();
    const levels = [];
    for (const path of this.members.keys()) (levels[path.split(".").length] ??= []).push(path);
    for (const paths of levels) {
      const more = new Set([...open, ...(paths ?? [])]);
      if (this.visible(more).order.length > 90) break;
      open = more;
    }
    return open;
  }

  // What stands for each operation: itself, or the outermost group that is closed.
  visible(open = this.open) {
    const order = [], where = [], seen = new Map();
    this.nodes.forEach((node, number) => {
      const closed = this.groupsOf(node).find((path) => !open.has(path));
      const key = closed ?? number;
      if (!seen.has(key)) {
        seen.set(key, order.length);
        order.push({ key, members: [], group: closed !== undefined });
      }
      order[seen.get(key)].members.push(number);
      where.push(seen.get(key));
    });
    return { order, where };
  }

  layout() {
    const { order, where } = this.visible();
    const links = new Map();
    for (const [from, to] of this.edges) {
      const a = where[from], b = where[to];
      if (a !== b) links.set(`${a},${b}`, [a, b]);
    }
    const rank = order.map(() => 0);
    const into = order.map(() => []);
    for (const [a, b] of links.values()) if (a < b) into[b].push(a);
    order.forEach((_, place) => {
      rank[place] = Math.max(0, ...into[place].map((source) => rank[source] + 1));
    });
    // What comes of no input, such as positions, stands right before what takes it.
    const isFree = order.map(() => false);
    order.forEach((shown, place) => {
      const isInput = shown.members.some((number) => this.nodes[number].operation === "input");
      isFree[place] = !isInput && into[place].every((source) => isFree[source]);
    });
    for (let place = order.length - 1; place >= 0; place--) {
      const users = isFree[place] ? order.flatMap((_, b) => into[b].includes(place) ? [rank[b]] : []) : [];
      if (users.length) rank[place] = Math.max(rank[place], Math.min(...users) - 1);
    }
    const rows = [];
    order.forEach((_, place) => (rows[rank[place]] ??= []).push(place));
    const x = order.map(() => 0);
    for (const row of rows) {
      // Each below the middle of what goes into it, and none over another.
      const wanted = (place) => into[place].length
        ? into[place].reduce((sum, source) => sum + x[source], 0) / into[place].length : 0;
      row.sort((a, b) => wanted(a) - wanted(b) || a - b);
      let right = -Infinity;
      for (const place of row) {
        x[place] = Math.max(wanted(place), right);
        right = x[place] + WIDTH + ACROSS;
      }
      const shift = row.reduce((sum, place) => sum + x[place] - wanted(place), 0) / row.length;
      for (const place of row) x[place] -= shift;
    }
    const spots = order.map((_, place) => ({ x: x[place], y: rank[place] * (HEIGHT + DOWN), column: 0 }));
    if (rows.length > FOLDED) this.fold(spots, rank, rows.length);
    return { order, spots, links: [...links.values()] };
  }

  // A long graph goes on in the next column, so that all of it has about the shape of a screen.
  fold(spots, rank, length) {
    const wide = Math.max(...spots.map((s) => s.x)) - Math.min(...spots.map((s) => s.x)) + WIDTH;
    const down = HEIGHT + DOWN;
    const each = Math.max(10, Math.ceil(Math.sqrt((length * (wide + 2 * ACROSS)) / (1.6 * down))));
    let right = 0;
    for (let column = 0; column * each < length; column++) {
      const own = spots.filter((_, place) => Math.floor(rank[place] / each) === column);
      if (!own.length) continue;
      const left = Math.min(...own.map((s) => s.x));
      const width = Math.max(...own.map((s) => s.x)) - left + WIDTH;
      for (const spot of own) {
        spot.x += right - left;
        spot.y -= column * each * down;
        spot.column = column;
      }
      right += width + 2 * ACROSS;
    }
  }

  // From the bottom of one to the top of the other; to another column from side to side.
  path(from, to) {
    if (from.column !== to.column) {
      const [startX, startY, endX, endY] = [from.x + WIDTH, from.y + HEIGHT / 2, to.x, to.y + HEIGHT / 2];
      return `M${startX} ${startY} C${startX + ACROSS} ${startY} ${endX - ACROSS} ${endY} ${endX} ${endY}`;
    }
    const [startX, startY, endX, endY] = [from.x + WIDTH / 2, from.y + HEIGHT, to.x + WIDTH / 2, to.y];
    const bend = Math.max(20, Math.abs(endY - startY) / 2);
    return `M${startX} ${startY} C${startX} ${startY + bend} ${endX} ${endY - bend} ${endX} ${endY}`;
  }

  // `keep` is an operation that shall have the focus again.
  draw(fit = false, keep = null) {
    const { order, spots, links } = this.layout();
    this.layer.replaceChildren();
    this.order = order;
    this.spots = spots;
    this.links = links;
    this.current = keep === null ? 0 : order.findIndex((shown) => shown.members.includes(keep));
    for (const [a, b] of links) {
      element("path", { class: "edge", "marker-end": `url(#${this.tip})`, d: this.path(spots[a], spots[b]) }, this.layer);
    }
    this.shown = order.map((shown, place) => this.drawNode(shown, spots[place], place));
    this.bounds = {
      left: Math.min(...spots.map((s) => s.x)) - 20, top: -20,
      right: Math.max(...spots.map((s) => s.x)) + WIDTH + 20,
      bottom: Math.max(...spots.map((s) => s.y)) + HEIGHT + 20,
    };
    // Few operations take no whole screen.
    const scale = fit ? 1.1 : this.view.scale;
    const needed = Math.max(12, ((this.bounds.bottom - this.bounds.top) * scale + 8) / 16);
    this.svg.style.height = `min(34rem, 75vh, ${needed.toFixed(1)}rem)`;
    if (fit) this.fit(); else this.apply();
    if (keep !== null) this.focus(this.current);
  }

  // One operation can be reached by Tab, the others from it by arrow keys.
  focus(place) {
    if (place < 0 || place >= this.shown.length) return;
    this.shown[this.current]?.setAttribute("tabindex", -1);
    this.current = place;
    this.shown[place].setAttribute("tabindex", 0);
    this.reveal(place);
    this.shown[place].focus({ preventScroll: true });
  }

  // Move the view so that this operation is in it.
  reveal(place) {
    const box = this.svg.getBoundingClientRect();
    const { x, y, scale } = this.view;
    const inside = (at, size, room) => {
      if (at < 10) return 10 - at;
      return at + size > room - 10 ? Math.max(room - 10 - at - size, 10 - at) : 0;
    };
    this.view.x += inside(this.spots[place].x * scale + x, WIDTH * scale, box.width);
    this.view.y += inside(this.spots[place].y * scale + y, HEIGHT * scale, box.height);
    this.apply();
  }

  // Along the connections up and down, to the neighbours in a row left and right.
  walk(place, key) {
    const here = this.spots[place];
    const near = (places) => places.sort((a, b) =>
      Math.abs(this.spots[a].x - here.x) - Math.abs(this.spots[b].x - here.x))[0];
    if (key === "ArrowDown") return near(this.links.filter(([a]) => a === place).map(([, b]) => b));
    if (key === "ArrowUp") return near(this.links.filter(([, b]) => b === place).map(([a]) => a));
    const side = key === "ArrowRight" ? 1 : -1;
    return near(this.spots.flatMap((spot, other) =>
      spot.column === here.column && spot.y === here.y && (spot.x - here.x) * side > 0 ? [other] : []));
  }

  nextFault() {
    const number = this.nodes.length;
    for (let step = 1; step <= number; step++) {
      const place = (this.lastFault + step) % number;
      const isNamed = this.nodes.some((node) => node.accused);
      const node = this.nodes[place];
      if (isNamed ? node.accused : node.starved) {
        this.lastFault = place;
        for (const path of this.groupsOf(node)) this.open.add(path);
        this.draw(false, place);
        return;
      }
    }
  }

  drawNode(shown, spot, place) {
    const own = shown.members.map((number) => this.nodes[number]);
    const first = own[0];
    const marks = ["accused", "starved"].filter((mark) => own.some((node) => node[mark]));
    const name = shown.group ? String(shown.key) : first.label;
    const sub = shown.group ? `${own.length} operations` : `${first.operation} ${first.shape}`;
    const node = element("g", {
      class: ["node", shown.group ? "group" : "", ...marks].join(" "),
      transform: `translate(${spot.x} ${spot.y})`, tabindex: place === this.current ? 0 : -1,
      role: shown.group ? "button" : "img", ...(shown.group ? { "aria-expanded": "false" } : {}),
      "aria-label": `${name}, ${sub}${marks.includes("accused") ? ", named by a finding" : ""}` +
      `${marks.includes("starved") ? ", starved of gradient" : ""}`,
    }, this.layer);
    element("rect", { width: WIDTH, height: HEIGHT }, node);
    const cut = (text, room) => text.length > room ? `…${text.slice(1 - room)}` : text;
    element("text", { x: WIDTH / 2, y: 16, "text-anchor": "middle" }, node).textContent =
      (shown.group ? "+ " : "") + cut(name, shown.group ? 22 : 24);
    element("text", { class: "sub", x: WIDTH / 2, y: 30, "text-anchor": "middle" }, node).textContent =
      sub.length > 30 ? `${sub.slice(0, 29)}…` : sub;
    const act = () => {
      if (shown.group) { this.open.add(shown.key); this.draw(false, shown.members[0]); }
      else this.tell(shown, own);
    };
    node.addEventListener("click", () => { if (!this.dragged) act(); });
    node.addEventListener("focus", () => this.tell(shown, own));
    node.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") act();
      else if (event.key === "Backspace") this.close(first, shown.members[0]);
      else if (event.key.startsWith("Arrow") && !event.shiftKey) this.focus(this.walk(place, event.key) ?? place);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    return node;
  }

  tell(shown, own) {
    const node = own[0];
    const parts = shown.group
      ? [`${shown.key}: ${own.length} operations, ${own.reduce((n, o) => n + o.parameters, 0).toLocaleString()} parameters`]
      : [`${node.label}: ${node.operation} ${node.shape}`];
    if (!shown.group) {
      if (node.starved) parts.push("starved: less than 1/100 of the last layer's gradient");
      if (node.parameters) parts.push(`${node.parameters.toLocaleString()} parameters`);
      if (node.gradient !== null) parts.push(`gradient ${node.gradient.toExponential(1)}`);
      if (node.zero) parts.push(`${Math.round(node.zero * 100)} % zeros`);
      if (node.saturated) parts.push(`${Math.round(node.saturated * 100)} % saturated`);
      if (node.place) parts.push(node.place);
      if (node.fault) parts.push(node.fault);
    }
    for (const one of own) if (one.accused) parts.push(one.accused);
    this.about.textContent = [...new Set(parts)].join(" · ");
  }

  close(node, keep) {
    const groups = this.groupsOf(node).filter((path) => this.open.has(path));
    if (groups.length) { this.open.delete(groups.at(-1)); this.draw(false, keep); }
  }

  // -------------------------------------------------------------------- looking around

  fit() {
    const box = this.svg.getBoundingClientRect();
    const { left, top, right, bottom } = this.bounds;
    const whole = Math.min((box.width || 800) / (right - left), (box.height || 500) / (bottom - top));
    const scale = Math.max(0.75, Math.min(1.1, whole));
    const isWide = (right - left) * scale > (box.width || 800);
    this.view = {
      scale, y: 8 - top * scale,
      x: isWide ? -left * scale : (box.width || 800) / 2 - ((left + right) / 2) * scale,
    };
    this.apply();
  }

  apply() {
    const { x, y, scale } = this.view;
    this.layer.setAttribute("transform", `translate(${x} ${y}) scale(${scale})`);
  }

  zoom(factor, centre = null) {
    const box = this.svg.getBoundingClientRect();
    const at = centre ?? { x: box.width / 2, y: box.height / 2 };
    const scale = Math.min(4, Math.max(0.08, this.view.scale * factor));
    const ratio = scale / this.view.scale;
    this.view = {
      scale, x: at.x - (at.x - this.view.x) * ratio, y: at.y - (at.y - this.view.y) * ratio,
    };
    this.apply();
  }

  listen() {
    const does = {
      in: () => this.zoom(1.3), out: () => this.zoom(1 / 1.3), fit: () => this.fit(),
      open: () => { this.open = new Set(this.members.keys()); this.draw(true); },
      close: () => { this.open.clear(); this.draw(true); },
      faults: () => this.nextFault(),
      move: (button) => {
        const on = this.frame.classList.toggle("moving");
        button.setAttribute("aria-pressed", on);
      },
      whole: () => {
        const box = this.svg.getBoundingClientRect();
        const { left, top, right, bottom } = this.bounds;
        const scale = Math.min(box.width / (right - left), box.height / (bottom - top));
        this.view = { scale, x: (box.width - (left + right) * scale) / 2, y: -top * scale };
        this.apply();
      },
    };
    for (const button of this.frame.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => does[button.dataset.do](button));
    }
    this.svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;  // the page scrolls
      event.preventDefault();
      const box = this.svg.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY / 300), { x: event.clientX - box.left, y: event.clientY - box.top });
    }, { passive: false });
    // A finger scrolls the page, unless it is told to move the graph.
    let held = null;
    this.svg.addEventListener("pointerdown", (event) => {
      this.dragged = false;
      if (event.pointerType === "mouse" || this.frame.classList.contains("moving")) {
        held = { x: event.clientX, y: event.clientY, way: 0 };
      }
    });
    addEventListener("pointermove", (event) => {
      if (!held) return;
      const [x, y] = [event.clientX - held.x, event.clientY - held.y];
      held = { x: event.clientX, y: event.clientY, way: held.way + Math.hypot(x, y) };
      this.dragged = held.way > 5;
      this.view.x += x;
      this.view.y += y;
      this.apply();
    });
    for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { held = null; });
    this.svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
      if (move && !event.shiftKey) {
        event.preventDefault();
        this.focus(this.current);
      } else if (move) {
        event.preventDefault();
        this.view.x += move[0];
        this.view.y += move[1];
        this.apply();
      }
      if (event.key === "+") this.zoom(1.3);
      if (event.key === "-") this.zoom(1 / 1.3);
    });
  }
}

for (const frame of document.querySelectorAll(".graph")) frame.drawing = new Drawing(frame);
