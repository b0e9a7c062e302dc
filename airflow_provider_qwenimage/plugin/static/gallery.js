// Shows the images of a task, a DAG run, a DAG or all DAGs, and updates them.
// Values from tasks are inserted as text, never as HTML.

// With the version that this script was loaded with, because browsers cache both.
const version = new URL(import.meta.url).search;
const { followTheme, openInAirflow } = await import(`./airflow.js${version}`);
const { Choice, countName } = await import(`./choice.js${version}`);

const PAGE = 60;
const MOST_AT_ONCE = 200;
const ACTIVE_MS = 3000;
const QUIET_MS = 15000;

const STATUSES = { done: "Done", drawing: "Drawing", waiting: "Waiting", failed: "Failed", unknown: "Possibly paid" };
const STATES = {
  reused: "Reused",
  submitted: "Submitted",
  up_for_retry: "Retrying",
  deferred: "Drawing",
  upstream_failed: "Upstream failed",
  not_submitted: "Waiting",
};
const EMPTY = {
  task: ["This task has no generated images", "Images appear here when the task has submitted them."],
  run: ["This run has no generated images", "Images appear here when a task of this run has submitted them."],
  dag: ["This DAG has no generated images yet", "Trigger the DAG: its images appear here."],
  all: ["There are no generated images yet", "Trigger a DAG that uses a Qwen-Image operator: its images appear here."],
};

// Another part of the list was requested meanwhile.
const OUTDATED = "The page has been loaded again.";

const EMPTY_CHOICE = ["This task has no candidates yet", "They appear here when the task asks which images to choose."];

const at = (id) => document.getElementById(id);
const grid = at("grid");
const viewer = at("viewer");
const scope = document.body.dataset.scope;
const number = new Intl.NumberFormat();

// The items of the list in its order, each with its element.
const slots = [];
const visible = new Set();
const filter = { status: "", text: "", chosen: false };
let found = 0;
let active = true;
let loading = false;
let timer = 0;
let shown = -1;
let generation = 0;
let sheetsShown = "[]";
let choicesShown = "[]";
// The tabs of the choosing tasks of the page, by the pages of these tasks.
let tabs = new Map();

// --- Airflow around the page

// Airflow's page of a task in a loop has the iteration in its address, and no placeholder for it in that of this page.
function regionOfTab() {
  const region = {};
  if (scope !== "task") return region;
  try {
    const shown = new URLSearchParams(window.parent.location.search);
    for (const name of ["region_id", "region_index"]) {
      if (shown.get(name)) region[name] = shown.get(name);
    }
  } catch {
    // The page is embedded in another page than Airflow's.
  }
  return region;
}

// --- Elements

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "dataset") Object.assign(made.dataset, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function airflowLink(href, text) {
  const link = element("a", { href, target: "_top", textContent: text });
  link.addEventListener("click", openInAirflow);
  return link;
}

const taskLink = (item, text) => airflowLink(item.task_url, text);

const mappedName = (item) => (item.map_index >= 0 ? `${item.task_id}[${item.map_index}]` : item.task_id);

function taskName(item) {
  return item.iteration === null ? mappedName(item) : `${mappedName(item)}, iteration ${item.iteration}`;
}
const stateName = (item) => STATES[item.state] ?? STATUSES[item.status];
const credits = (count) => `${number.format(count)} ${count === 1 ? "credit" : "credits"}`;
const moment = (iso) => (iso ? new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : null);

function seedName(item) {
  if (item.seed === null) return null;
  return item.seed === -1 ? "random seed" : `seed ${item.seed}`;
}

function costName(item) {
  if (item.at_risk) return `${credits(item.at_risk)} at risk`;
  return item.credits === null ? null : credits(item.credits);
}

// --- Cards

function picture(item) {
  if (!item.thumbnail) {
    const done = item.address ? "Not stored" : "No image";
    const text = { waiting: "Waiting", drawing: "Drawing", done }[item.status] ?? item.error ?? "No image";
    return element("span", { className: "none", textContent: text });
  }
  return imageAt(item, item.thumbnail, "none", { loading: "lazy", decoding: "async" });
}

// A stored image, or the reason why it cannot be loaded. Nothing is ever loaded from other hosts.
function imageAt(item, address, className, properties = {}) {
  const image = element("img", { alt: item.prompt ?? "", referrerPolicy: "no-referrer", ...properties, src: address });
  image.addEventListener("error", async () => {
    image.replaceWith(element("span", { className, textContent: await reasonFor(address) }));
  });
  return image;
}

async function reasonFor(url) {
  try {
    return (await (await fetch(url)).json()).detail;
  } catch {
    return "The image cannot be loaded.";
  }
}

// What has become of an image among which a person chooses.
function markName(mark) {
  return { chosen: `${mark.number} · Chosen`, not_chosen: `${mark.number} · Not chosen` }[mark.outcome] ?? `Candidate ${mark.number}`;
}

function badges(item) {
  const state = element("span", { className: "badge", textContent: stateName(item) });
  if (!item.mark) return [state];
  const mark = element("span", { className: "badge mark", textContent: markName(item.mark), dataset: { outcome: item.mark.outcome } });
  return item.is_candidate ? [mark] : [state, mark];
}

function makeCard(index, item) {
  const open = element("button", { type: "button", className: "picture" }, picture(item));
  const marks = badges(item);
  const names = marks.map((mark) => mark.textContent).join(", ");
  open.setAttribute("aria-label", `${names}: ${item.label ?? item.prompt ?? taskName(item)}`);
  open.append(element("span", { className: "badges" }, ...marks));
  open.addEventListener("click", () => view(index));
  const facts = [item.size?.replace("*", " × "), item.output_format, seedName(item), costName(item)];
  const ids = element("p", { className: "ids" }, taskLink(item, taskName(item)));
  if (item.time) ids.append(" · ", moment(item.time));
  if (item.image_task_id) ids.append(element("br"), element("code", { textContent: item.image_task_id }));
  return element(
    "article",
    { className: "card", dataset: { status: item.status, index } },
    open,
    item.is_candidate ? choice.control(item) : null,
    element(
      "div",
      { className: "text" },
      item.label ? element("p", { className: "label", dir: "auto", title: item.label, textContent: item.label }) : null,
      item.prompt ? element("p", { className: "prompt", dir: "auto", title: item.prompt, textContent: item.prompt }) : null,
      item.message || (item.status === "failed" && !item.prompt)
        ? element("p", { className: item.status === "done" ? "facts" : "error", title: item.message ?? "", textContent: item.message ?? "The task failed. See its log for the reason." })
        : null,
      element("p", { className: "facts", textContent: facts.filter(Boolean).join(" · ") }),
      ids,
    ),
  );
}

// What the cards below a heading have in common: their run, or of several choosing task instances the one that asks.
function groupOf(item) {
  if (scope === "run") return null;
  if (scope !== "task") return { name: item.run_id, address: item.run_url, before: scope === "all" ? `${item.dag_id} · ` : null };
  return tabs.size > 1 && item.is_candidate ? { name: taskName(item), address: tabs.get(item.task_url) ?? item.task_url } : null;
}

function headingOf({ name, address, before }) {
  return element("h2", { className: "group" }, before, airflowLink(address, name));
}

function put(index, item) {
  const text = JSON.stringify(item);
  const slot = slots[index];
  if (slot?.text === text) return;
  const made = makeCard(index, item);
  if (slot) {
    const focused = slot.card.contains(document.activeElement);
    watcher.unobserve(slot.card);
    slot.card.replaceWith(made);
    if (focused) made.querySelector("button").focus({ preventScroll: true });
  } else {
    grid.append(made);
  }
  watcher.observe(made);
  slots[index] = { item, text, card: made, heading: slot?.heading ?? null };
  updateHeading(index);
  if (shown === index && viewer.open) fill(index);
}

function updateHeading(index) {
  const { item, card, heading } = slots[index];
  heading?.remove();
  slots[index].heading = null;
  const group = groupOf(item);
  const before = slots[index - 1] && groupOf(slots[index - 1].item);
  if (group !== null && group.address !== before?.address) {
    slots[index].heading = headingOf(group);
    card.before(slots[index].heading);
  }
}

function cut(length) {
  for (const slot of slots.splice(length)) {
    watcher.unobserve(slot.card);
    visible.delete(Number(slot.card.dataset.index));
    slot.heading?.remove();
    slot.card.remove();
  }
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const index = Number(entry.target.dataset.index);
      if (entry.isIntersecting) visible.add(index);
      else visible.delete(index);
    }
  },
  { rootMargin: "200px" },
);

// --- Totals, filter, batches

function total(name, text, className = "") {
  return element("div", { className }, element("dt", { textContent: name }), element("dd", { textContent: text }));
}

function showTotals(totals) {
  const { counts } = totals;
  at("only-chosen").hidden = !totals.chosen && !filter.chosen;
  at("only-chosen").querySelector("span").textContent = number.format(totals.chosen);
  const open = counts.drawing + counts.waiting;
  at("totals").replaceChildren(
    total("images", open || counts.failed || counts.unknown ? `${number.format(counts.done)} of ${number.format(totals.images)}` : number.format(counts.done)),
    total("failed", number.format(counts.failed), counts.failed ? "failed" : ""),
    total("credits spent", number.format(totals.credits)),
    total("credits at risk", number.format(totals.at_risk), totals.at_risk ? "unknown" : ""),
  );
  const news = `${counts.done} of ${totals.images} images, ${counts.failed} failed, ${credits(totals.credits)} spent`;
  if (at("news").textContent !== news) at("news").textContent = news;
  for (const button of at("statuses").children) {
    const { status } = button.dataset;
    button.querySelector("span").textContent = number.format(status ? counts[status] : totals.images);
    button.hidden = status !== "" && !counts[status] && filter.status !== status;
  }
}

// Candidates are images of other tasks, which have their credits and failures.
function showCandidateTotals(totals) {
  showTotals(totals);
  const chosen = totals.chosen ? [total("chosen", number.format(totals.chosen))] : [];
  at("totals").replaceChildren(total(countName(totals.images).replace(/^\S+ /, ""), number.format(totals.images)), ...chosen);
  at("news").textContent = countName(totals.images);
  at("statuses").hidden = true;
}

function makeFilter() {
  for (const [status, name] of [["", "All"], ...Object.entries(STATUSES)]) {
    const button = element("button", { type: "button", dataset: { status } }, `${name} `, element("span"));
    button.setAttribute("aria-pressed", String(status === ""));
    button.addEventListener("click", () => choose({ status }));
    at("statuses").append(button);
  }
  at("only-chosen").addEventListener("click", () => choose({ chosen: !filter.chosen }));
  let pause = 0;
  at("text").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => choose({ text: at("text").value }), 250);
  });
  at("filter").addEventListener("submit", (event) => {
    event.preventDefault();
    choose({ text: at("text").value });
  });
}

function choose(change) {
  Object.assign(filter, change);
  for (const button of at("statuses").children) {
    button.setAttribute("aria-pressed", String(button.dataset.status === filter.status));
  }
  at("only-chosen").setAttribute("aria-pressed", String(filter.chosen));
  generation += 1;
  loading = false;
  cut(0);
  load(0, PAGE);
}

function showBatches(batches) {
  at("batches").replaceChildren(
    ...batches
      .filter((batch) => !batch.has_ended || batch.problem)
      .map((batch) => {
        const { progress } = batch;
        const done = progress.done ?? 0;
        const all = progress.requests ?? 0;
        const parts = [
          all ? `${number.format(done)} of ${number.format(all)} images` : batch.state ?? "waiting",
          progress.failed ? `${number.format(progress.failed)} failed` : null,
          progress.in_flight && !batch.has_ended ? `${number.format(progress.in_flight)} in progress` : null,
          all ? credits(progress.consumed_credits ?? 0) : null,
          progress.images_per_second && !batch.has_ended ? `${progress.images_per_second.toFixed(1)} images/s` : null,
          progress.seconds_left && !batch.has_ended ? `about ${duration(progress.seconds_left)} left` : null,
        ];
        const made = element(
          "div",
          { className: "batch" },
          element("p", {}, taskLink(batch, taskName(batch)), element("span", { textContent: parts.filter(Boolean).join(" · ") })),
        );
        if (all) {
          const bar = element("progress", { max: all, value: done });
          bar.setAttribute("aria-label", `Progress of ${taskName(batch)}`);
          made.append(bar);
        }
        if (batch.problem) made.append(element("p", { className: "problem", textContent: batch.problem }));
        return made;
      }),
  );
}

// The contact sheets of batches that have one, each page with a link to its full size.
function showSheets(batches) {
  const found = batches.filter((batch) => batch.sheets.length);
  const text = JSON.stringify(found.map((batch) => [batch.task_url, batch.sheet_pages, batch.sheets]));
  // Unchanged pages are not loaded again.
  if (text === sheetsShown) return;
  sheetsShown = text;
  at("sheets").replaceChildren(
    ...found.map((batch) => {
      const left = batch.sheet_pages - batch.sheets.length;
      const pages = batch.sheet_pages > 1 ? `, ${number.format(batch.sheet_pages)} pages` : "";
      return element(
        "div",
        { className: "sheet" },
        element("p", {}, taskLink(batch, taskName(batch)), ` · contact sheet${pages}`),
        element("div", { className: "pages" }, ...batch.sheets.map((sheet, index) => sheetLink(batch, sheet, index + 1))),
        left ? element("p", { className: "note", textContent: `${number.format(left)} more pages are next to the manifest.` }) : null,
      );
    }),
  );
}

function sheetLink(batch, sheet, page) {
  const name = `Contact sheet of ${taskName(batch)}, page ${page}`;
  const image = imageAt({ prompt: name }, sheet.thumbnail, "none", { loading: "lazy", decoding: "async" });
  const link = element("a", { href: sheet.image, target: "_blank", rel: "noopener", title: "Open in full size" }, image);
  link.addEventListener("click", openInAirflow);
  return link;
}

// What is asked and what was chosen, with links to the candidates unless they are those of the page.
function showChoices(choices) {
  const text = JSON.stringify(choices);
  if (text === choicesShown) return;
  choicesShown = text;
  at("choices").replaceChildren(
    ...choices
      .filter((each) => each.candidates || each.problem)
      .map((each) => {
        const link = scope === "task" && choices.length === 1 ? null : airflowLink(each.tab_url, "Show the candidates");
        return element(
          "div",
          { className: "choice", dataset: { waiting: String(each.is_waiting) } },
          element("p", {}, taskLink(each, taskName(each)), element("span", { textContent: choiceName(each) }), link),
          each.is_waiting && each.note ? element("p", { className: "problem", textContent: each.note }) : null,
          each.problem ? element("p", { className: "problem", textContent: each.problem }) : null,
        );
      }),
  );
}

function choiceName(each) {
  const { verdict } = each;
  const all = countName(each.candidates);
  if (verdict) {
    const by = verdict.by ? ` by ${verdict.by}` : "";
    const parts = [`${number.format(verdict.chosen)} of ${all} chosen${by}`, moment(verdict.at), verdict.timed_out ? "nobody answered in time" : null];
    return parts.filter(Boolean).join(" · ");
  }
  if (each.state === "failed") return `${all} · the task failed, so nothing was chosen`;
  if (!each.is_waiting) return all;
  const until = each.deadline ? moment(each.deadline * 1000) : null;
  return `waits for a choice of ${choice.range(each)} of ${all}${until ? `, until ${until}` : ""}`;
}

function duration(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

function showState(listing) {
  at("note").hidden = !listing.note;
  at("note").textContent = listing.note ?? "";
  const isFiltered = filter.status || filter.text || filter.chosen;
  const isEmpty = found === 0 && !((listing.batches.length || listing.choices.some((each) => each.problem)) && !isFiltered);
  at("empty").hidden = !isEmpty;
  if (isEmpty) {
    const empty = scope === "task" && listing.choices.length ? EMPTY_CHOICE : EMPTY[scope];
    const [title, text] = isFiltered ? ["No image matches", "Choose another status, or search for something else."] : empty;
    at("empty").replaceChildren(element("strong", { textContent: title }), text);
  }
  at("more").textContent = slots.length < found ? `${number.format(slots.length)} of ${number.format(found)} shown` : "";
}

// --- Loading

// Returns why the page does not show what is stored now, or null.
async function load(offset, limit) {
  if (loading) return OUTDATED;
  loading = true;
  const mine = generation;
  const address = new URL(document.body.dataset.url, location.href);
  address.searchParams.set("offset", offset);
  address.searchParams.set("limit", limit);
  for (const [name, value] of Object.entries(regionOfTab())) address.searchParams.set(name, value);
  if (filter.status) address.searchParams.set("status", filter.status);
  if (filter.chosen) address.searchParams.set("chosen", "true");
  if (filter.text.trim()) address.searchParams.set("text", filter.text.trim());
  try {
    const answer = await request(address);
    if (mine !== generation) return OUTDATED;
    if (!answer.ok) throw new Error(await problemOf(answer));
    const listing = await answer.json();
    if (mine !== generation) return OUTDATED;
    found = listing.found;
    active = listing.is_active;
    tabs = new Map(listing.choices.map((each) => [each.task_url, each.tab_url]));
    // Candidates of several task instances have the same numbers, so each is answered on its own tab.
    choice.update(scope === "task" && listing.choices.length === 1 ? listing.choices[0] : null);
    listing.items.forEach((item, index) => put(offset + index, item));
    choice.show();
    if (slots.length > found) cut(found);
    if (scope === "task" && listing.choices.length) showCandidateTotals(listing.totals);
    else showTotals(listing.totals);
    showChoices(listing.choices);
    showBatches(listing.batches);
    showSheets(listing.batches);
    showState(listing);
    return null;
  } catch (error) {
    const problem = error.message || String(error);
    if (mine === generation) at("more").textContent = `${problem} Retrying.`;
    return problem;
  } finally {
    if (mine === generation) {
      loading = false;
      grid.ariaBusy = "false";
      schedule();
      if (isNearEnd()) more();
    }
  }
}

// Loads the beginning of the list, after what is being loaded; returns why it cannot be loaded, or null.
async function reload() {
  let problem = OUTDATED;
  while (problem === OUTDATED) {
    while (loading) await new Promise((done) => { setTimeout(done, 50); });
    problem = await load(0, PAGE);
  }
  return problem;
}

async function request(address) {
  try {
    return await fetch(address, { headers: { Accept: "application/json" } });
  } catch {
    throw new Error("Airflow cannot be reached.");
  }
}

async function problemOf(answer) {
  if (answer.status === 401) return "You are logged out of Airflow. Log in and reload this page.";
  if (answer.status === 403) return "You need permission to read the XComs of this DAG.";
  return `Airflow responded with HTTP ${answer.status}.`;
}

function more() {
  if (!loading && slots.length < found) load(slots.length, PAGE);
}

const isNearEnd = () => slots.length < found && at("more").getBoundingClientRect().top < innerHeight + 900;

function refresh() {
  if (document.hidden || loading) {
    schedule();
    return;
  }
  // Only what is visible: of thousands of images, the others are updated when they become visible.
  const indexes = [...visible];
  const first = indexes.length ? Math.min(...indexes) : 0;
  const last = indexes.length ? Math.max(...indexes) : 0;
  load(first, Math.min(MOST_AT_ONCE, Math.max(last - first + 1, PAGE)));
}

function schedule() {
  clearTimeout(timer);
  timer = setTimeout(refresh, active ? ACTIVE_MS : QUIET_MS);
}

// --- One image

function view(index) {
  if (!viewer.open) viewer.showModal();
  fill(index);
  at("close").focus();
}

async function fill(index) {
  shown = index;
  const { item } = slots[index];
  at("position").textContent = `${number.format(index + 1)} of ${number.format(found)}`;
  at("previous").disabled = index === 0;
  at("next").disabled = index >= slots.length - 1;
  at("prompt").textContent = item.prompt ?? "";
  at("figure").replaceChildren(bigPicture(item));
  showActions(item);
  showFacts(item, null);
  if (item.details) {
    try {
      const answer = await fetch(item.details);
      if (answer.ok && shown === index) showFacts(item, await answer.json());
    } catch {
      // The facts of the list are shown already.
    }
  }
}

function bigPicture(item) {
  const elsewhere = "This image is not stored. Its address at the API may expire soon.";
  if (!item.image) return element("p", { textContent: item.message ?? (item.address ? elsewhere : stateName(item)) });
  return imageAt(item, item.image, "missing");
}

function showActions(item) {
  const actions = [];
  if (item.prompt) actions.push(copyButton("Copy prompt", item.prompt));
  if (item.seed !== null && item.seed !== -1) actions.push(copyButton("Copy seed", String(item.seed)));
  if (item.details) {
    actions.push(element("a", { href: `${item.image}&download=true`, download: "", textContent: "Download" }));
  }
  if (item.address) {
    const properties = { target: "_blank", rel: "noopener noreferrer", referrerPolicy: "no-referrer" };
    const link = element("a", { href: item.address, textContent: "Open at the API", ...properties });
    link.addEventListener("click", openInAirflow);
    actions.push(link);
  }
  if (item.is_candidate) actions.push(choice.toggle(item));
  actions.push(taskLink(item, "Open the task"));
  at("actions").replaceChildren(...actions);
}

function copyButton(name, text) {
  const button = element("button", { type: "button", textContent: name });
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text)) ? "Copied" : "Copy failed";
    setTimeout(() => { button.textContent = name; }, 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS, browsers have no clipboard API.
    const field = element("textarea", { value: text });
    viewer.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}

function provenance(sidecar) {
  if (sidecar?.not_marked_because) return `not marked in the file: ${sidecar.not_marked_because}`;
  if (!sidecar?.provenance) return null;
  return sidecar.provenance === "full" ? "marked in the file, with the prompt" : "marked in the file";
}

// Who chose, of all tasks that had a person choose.
function verdictFacts(sidecar) {
  const verdicts = Array.isArray(sidecar?.verdicts) ? sidecar.verdicts : [];
  return Object.fromEntries(
    verdicts.map((each, index) => {
      const by = each.by?.name ? `by ${each.by.name}` : each.timed_out ? "nobody answered in time" : null;
      const where = each.task ? `in ${[each.task.dag_id, each.task.run_id, mappedName(each.task)].filter(Boolean).join(", ")}` : null;
      const text = [each.chosen ? "Chosen" : "Not chosen", by, moment(each.at), where].filter(Boolean).join(", ");
      return [verdicts.length > 1 ? `Verdict ${index + 1}` : "Verdict", text];
    }),
  );
}

function showFacts(item, sidecar) {
  const facts = {
    Status: stateName(item),
    Label: item.label,
    Choice: item.mark ? `${markName(item.mark)}${item.is_candidate ? "" : ` (${mappedName(item.mark)})`}` : null,
    ...verdictFacts(sidecar),
    Error: item.error ? `${item.error}: ${item.message ?? ""}` : null,
    Size: item.size?.replace("*", " × "),
    Format: item.output_format,
    Seed: item.seed === -1 ? "random" : item.seed,
    Credits: item.credits,
    "Credits at risk": item.at_risk || null,
    Bytes: sidecar ? number.format(sidecar.size_bytes) : null,
    "Image task": item.image_task_id,
    DAG: item.dag_id,
    Run: item.run_id,
    Task: taskName(item),
    Sensor: item.waited_for_by,
    Created: moment(sidecar?.created_at),
    Stored: moment(sidecar?.stored_at) ?? (item.details ? moment(item.time) : null),
    Path: sidecar?.path,
    "SHA-256": sidecar?.sha256,
    Provenance: provenance(sidecar),
    "Drawn by": sidecar && sidecar.made_by?.run_id !== item.run_id ? `${sidecar.made_by?.dag_id}, ${sidecar.made_by?.run_id}` : null,
  };
  at("facts").replaceChildren(
    ...Object.entries(facts)
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: String(value) })]),
  );
}

function step(by) {
  const index = shown + by;
  if (index >= 0 && index < slots.length) fill(index);
  if (index >= slots.length - 5) more();
}

viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
viewer.addEventListener("close", () => {
  slots[shown]?.card.querySelector("button").focus();
  shown = -1;
});
at("previous").addEventListener("click", () => step(-1));
at("next").addEventListener("click", () => step(1));
at("close").addEventListener("click", () => viewer.close());
addEventListener("scroll", () => isNearEnd() && more(), { passive: true });
addEventListener("resize", () => isNearEnd() && more());
document.addEventListener("visibilitychange", () => !document.hidden && refresh());

const choice = new Choice(at("answer"), reload);

followTheme();
makeFilter();
// What the user typed while the page was loading.
filter.text = at("text").value;
load(0, PAGE);
