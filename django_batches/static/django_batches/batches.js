// Moves the bars of batches: one request per address for all bars of the page, every two seconds, less often while
// nothing changes, not at all while the page is hidden or once all of them have ended.

const FIRST = 2000;
const LAST = 15000;
const SLOWER = 1.5;
const LIMIT = 100; // batches that one request may ask for

/** All batches of the page whose status comes from one address. */
class Feed {
  constructor(address) {
    this.address = address;
    this.pause = FIRST;
    this.timer = 0;
    this.isAsking = false;
    this.last = "";
    this.turn = 0; // the first of those that the next request asks for, where there are more than one may
    this.states = new Map();
  }

  get bars() {
    return [...document.querySelectorAll("[data-batch-live]")].filter((bar) => bar.dataset.batchLive === this.address);
  }

  schedule(pause) {
    clearTimeout(this.timer);
    if (!document.hidden && this.bars.length) {
      this.timer = setTimeout(() => this.ask(), pause);
    }
  }

  async ask() {
    if (this.isAsking) return;
    this.isAsking = true;
    try {
      const url = new URL(this.address, document.baseURI);
      const asked = this.next();
      for (const id of asked) url.searchParams.append("id", id);
      const response = await fetch(url, { headers: { Accept: "application/json" }, credentials: "same-origin" });
      const isJson = (response.headers.get("Content-Type") || "").startsWith("application/json");
      if ([401, 403, 404].includes(response.status) || (response.ok && !isJson)) {
        this.stop(); // logged out, not allowed (any more), or deleted
      } else if (response.ok) {
        this.show(await response.text(), asked);
      } else {
        this.pause = LAST;
      }
    } catch {
      this.pause = LAST; // no network: the next time
    } finally {
      this.isAsking = false;
    }
    this.schedule(this.pause);
  }

  /** The batches of the next request, in turns. */
  next() {
    const ids = [...new Set(this.bars.map((bar) => bar.dataset.batch))];
    const first = this.turn < ids.length ? this.turn : 0;
    this.turn = first + LIMIT;
    return ids.slice(first, this.turn);
  }

  show(text, asked) {
    this.pause = text === this.last ? Math.min(this.pause * SLOWER, LAST) : FIRST;
    this.last = text;
    const { batches, panels } = JSON.parse(text);
    for (const bar of this.bars) {
      const id = bar.dataset.batch;
      if (asked.includes(id) && !(id in batches)) bar.removeAttribute("data-batch-live"); // deleted
    }
    for (const batch of Object.values(batches)) this.showBatch(batch);
    for (const [name, html] of Object.entries(panels || {})) showPanel(name, html);
  }

  showBatch(batch) {
    for (const element of document.querySelectorAll(`[data-batch="${CSS.escape(batch.id)}"]`)) {
      if ("batchShow" in element.dataset) setText(element, batch.text[element.dataset.batchShow]);
      if ("batchBadge" in element.dataset) showBadge(element, batch);
      if ("batchBar" in element.dataset) showBar(element, batch);
    }
    const before = this.states.get(batch.id) || document.querySelector(`[data-batch-bar][data-batch="${CSS.escape(batch.id)}"]`)?.dataset.batchState;
    this.states.set(batch.id, batch.state);
    const isAsked = this.bars.some((bar) => bar.dataset.batch === batch.id); // not those of a tree: too many words
    if (before && before !== batch.state && isAsked) announce(batch);
    for (const bar of this.bars) {
      if (bar.dataset.batch !== batch.id) continue;
      bar.dataset.batchState = batch.state;
      if (batch.is_over) bar.removeAttribute("data-batch-live");
    }
  }

  stop() {
    for (const bar of this.bars) bar.removeAttribute("data-batch-live");
  }
}

function setText(element, text) {
  if (text !== undefined && element.textContent !== text) element.textContent = text;
}

function showBadge(element, batch) {
  element.className = `batch-badge batch-badge--${batch.state}`;
  setText(element.querySelector("[data-batch-word]"), batch.text.state);
}

function showBar(svg, batch) {
  for (const [name, x, width] of batch.segments) {
    const segment = svg.querySelector(`[data-segment="${CSS.escape(name)}"]`);
    if (!segment) continue;
    segment.setAttribute("x", x);
    segment.setAttribute("width", width);
    if (name === "failed") {
      const hatch = svg.querySelector("[data-hatch]");
      hatch.setAttribute("x1", x);
      hatch.setAttribute("x2", x + width);
    }
  }
  svg.setAttribute("aria-valuenow", batch.percent);
  svg.setAttribute("aria-valuetext", `${batch.text.percent}: ${batch.text.summary}`);
}

/** Replaces a panel by what the server has drawn (and escaped), unless somebody is reading or about to click in it. */
function showPanel(name, html) {
  const panel = document.querySelector(`[data-batch-panel="${CSS.escape(name)}"]`);
  if (!panel || panels.get(panel) === html) return;
  const selection = document.getSelection();
  const isSelected = selection && !selection.isCollapsed && panel.contains(selection.anchorNode);
  if (panel.contains(document.activeElement) || panel.matches(":hover:has(a:hover)") || panel.querySelector("details[open]") || isSelected) return;
  const drawn = document.createElement("template");
  drawn.innerHTML = html;
  for (const old of panel.querySelectorAll("[data-batch-bar]")) {
    const fresh = drawn.content.querySelector(`[data-batch-bar][data-batch="${CSS.escape(old.dataset.batch)}"]`);
    if (!fresh) continue;
    // The bar on the page stays, so that it glides; whether it goes on asking is the new one's to say.
    if (!fresh.hasAttribute("data-batch-live")) old.removeAttribute("data-batch-live");
    fresh.replaceWith(old);
  }
  panel.replaceChildren(drawn.content);
  panels.set(panel, html);
}

const panels = new WeakMap();

/** Tells a change of state to those who do not see it. */
function announce(batch) {
  const bar = document.querySelector(`[data-batch-bar][data-batch="${CSS.escape(batch.id)}"]`);
  let announcer = document.querySelector("[data-batch-announcer]");
  if (!announcer) {
    announcer = document.createElement("p");
    announcer.className = "batch-announcer";
    announcer.setAttribute("role", "status");
    announcer.setAttribute("aria-live", "polite");
    announcer.dataset.batchAnnouncer = "";
    document.body.append(announcer);
  }
  announcer.textContent = `${bar?.getAttribute("aria-label") || ""}: ${batch.text.state}. ${batch.text.summary}`;
}

function submitOnce(event) {
  const form = event.target.closest("form[data-batch-once]");
  if (!form) return;
  if (form.dataset.batchOnce === "sent") {
    event.preventDefault();
    return;
  }
  form.dataset.batchOnce = "sent";
  form.querySelector("[type=submit]").setAttribute("aria-disabled", "true");
}

function start() {
  const addresses = new Set([...document.querySelectorAll("[data-batch-live]")].map((bar) => bar.dataset.batchLive));
  const feeds = [...addresses].map((address) => new Feed(address));
  for (const feed of feeds) feed.schedule(FIRST / 2);
  document.addEventListener("visibilitychange", () => {
    for (const feed of feeds) {
      feed.pause = FIRST;
      feed.schedule(0);
    }
  });
  document.addEventListener("submit", submitOnce);
  // Back from another page with the browser's memory of this one: the form may be sent again.
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-batch-once]")) {
      form.dataset.batchOnce = "";
      form.querySelector("[type=submit]").removeAttribute("aria-disabled");
    }
  });
}

start();
