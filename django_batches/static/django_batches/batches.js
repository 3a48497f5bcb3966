// Updates the progress bars: one request per URL for all bars of the page. It polls every two seconds, less often while
// nothing changes, and not at all while the page is hidden or after all batches have ended.

const MIN_INTERVAL = 2000;
const MAX_INTERVAL = 15000;
const BACKOFF = 1.5;
const LIMIT = 100; // the server's limit of batches per request

/** All batches of the page that are polled from one URL. */
class Feed {
  constructor(url) {
    this.url = url;
    this.interval = MIN_INTERVAL;
    this.timer = 0;
    this.isPolling = false;
    this.last = "";
    this.offset = 0; // of the next request, if there are more batches than LIMIT
    this.states = new Map();
  }

  get bars() {
    return [...document.querySelectorAll("[data-batch-live]")].filter((bar) => bar.dataset.batchLive === this.url);
  }

  schedule(delay) {
    clearTimeout(this.timer);
    if (!document.hidden && this.bars.length) {
      this.timer = setTimeout(() => this.poll(), delay);
    }
  }

  async poll() {
    if (this.isPolling) return;
    this.isPolling = true;
    try {
      const url = new URL(this.url, document.baseURI);
      const ids = this.next();
      for (const id of ids) url.searchParams.append("id", id);
      const response = await fetch(url, { headers: { Accept: "application/json" }, credentials: "same-origin" });
      const isJson = (response.headers.get("Content-Type") || "").startsWith("application/json");
      if ([401, 403, 404].includes(response.status) || (response.ok && !isJson)) {
        this.stop(); // logged out, forbidden or deleted
      } else if (response.ok) {
        this.show(await response.text(), ids);
      } else {
        this.interval = MAX_INTERVAL;
      }
    } catch {
      this.interval = MAX_INTERVAL; // no network
    } finally {
      this.isPolling = false;
    }
    this.schedule(this.interval);
  }

  /** The batches of the next request. */
  next() {
    const ids = [...new Set(this.bars.map((bar) => bar.dataset.batch))];
    const start = this.offset < ids.length ? this.offset : 0;
    this.offset = start + LIMIT;
    return ids.slice(start, this.offset);
  }

  show(text, ids) {
    this.interval = text === this.last ? Math.min(this.interval * BACKOFF, MAX_INTERVAL) : MIN_INTERVAL;
    this.last = text;
    const { batches, panels } = JSON.parse(text);
    for (const bar of this.bars) {
      const id = bar.dataset.batch;
      if (ids.includes(id) && !(id in batches)) bar.removeAttribute("data-batch-live"); // deleted
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
    const isPolled = this.bars.some((bar) => bar.dataset.batch === batch.id); // a tree would announce too much
    if (before && before !== batch.state && isPolled) announce(batch);
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

/** Replaces a panel with the (escaped) HTML from the server, unless the user is reading or about to click in it. */
function showPanel(name, html) {
  const panel = document.querySelector(`[data-batch-panel="${CSS.escape(name)}"]`);
  if (!panel || panels.get(panel) === html) return;
  const selection = document.getSelection();
  const isSelected = selection && !selection.isCollapsed && panel.contains(selection.anchorNode);
  if (panel.contains(document.activeElement) || panel.matches(":hover:has(a:hover)") || panel.querySelector("details[open]") || isSelected) return;
  const rendered = document.createElement("template");
  rendered.innerHTML = html;
  for (const old of panel.querySelectorAll("[data-batch-bar]")) {
    const fresh = rendered.content.querySelector(`[data-batch-bar][data-batch="${CSS.escape(old.dataset.batch)}"]`);
    if (!fresh) continue;
    // Keep the old bar, so that its changes are animated, but stop polling if the new one does.
    if (!fresh.hasAttribute("data-batch-live")) old.removeAttribute("data-batch-live");
    fresh.replaceWith(old);
  }
  panel.replaceChildren(rendered.content);
  panels.set(panel, html);
}

const panels = new WeakMap();

/** Announces a change of state to screen readers. */
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
  const urls = new Set([...document.querySelectorAll("[data-batch-live]")].map((bar) => bar.dataset.batchLive));
  const feeds = [...urls].map((url) => new Feed(url));
  for (const feed of feeds) feed.schedule(MIN_INTERVAL / 2);
  document.addEventListener("visibilitychange", () => {
    for (const feed of feeds) {
      feed.interval = MIN_INTERVAL;
      feed.schedule(0);
    }
  });
  document.addEventListener("submit", submitOnce);
  // The browser restored this page from its back/forward cache: allow the form to be sent again.
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-batch-once]")) {
      form.dataset.batchOnce = "";
      form.querySelector("[type=submit]").removeAttribute("aria-disabled");
    }
  });
}

start();
