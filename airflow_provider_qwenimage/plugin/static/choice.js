// Lets the user choose among the candidates of a task, and sends the choice through Airflow's own API, which checks
// that the user may answer.

const number = new Intl.NumberFormat();
// The form of the question has a text for numbers that are not among its options.
const NUMBERS = "numbers";
// After an answer the task needs some time to go on. If it asks the same again, the form is shown again.
const QUIET_MS = 30000;

export const countName = (count) => `${number.format(count)} ${count === 1 ? "candidate" : "candidates"}`;

const REASONS = {
  401: "You are logged out of Airflow. Log in and reload this page.",
  403: "You may not answer this question: it is assigned to other users, or your role may not answer required actions. Ask somebody who may.",
  404: "This task no longer waits for a choice, so yours was not sent.",
  409: "Somebody has already answered this question.",
};

const CHANGED = "The question has changed. Look at the candidates again, and choose.";

export class Choice {
  // form: The form with the number of chosen candidates and the button.
  // refresh: Loads the list again; returns why it cannot be loaded, or null.
  constructor(form, refresh) {
    this.form = form;
    this.refresh = refresh;
    this.asked = null;
    this.chosen = new Set();
    this.sent = { version: null, at: 0 };
    this.isSending = false;
    // Whether the user has chosen for a question that is asked no longer.
    this.isLost = false;
    this.part = (name) => form.querySelector(`#answer-${name}`);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.part("clear").addEventListener("click", () => {
      this.chosen.clear();
      this.remember();
      this.say("");
      this.show();
    });
  }

  get isOpen() {
    if (this.asked === null) return false;
    return this.asked.version !== this.sent.version || Date.now() - this.sent.at > QUIET_MS;
  }

  range({ at_least: least, at_most: most }) {
    return least === most ? number.format(least) : `${number.format(least)} to ${number.format(most)}`;
  }

  // Takes the choice of the page; null if it has none, or several.
  update(choice) {
    const asked = choice?.is_waiting ? choice : null;
    if (asked?.version !== this.asked?.version) {
      if (this.chosen.size > 0 && this.asked.version !== this.sent.version) this.isLost = true;
      this.asked = asked;
      this.chosen = this.remembered();
      if (asked !== null) {
        this.say(this.isLost ? CHANGED : "");
        this.isLost = false;
      } else if (this.isLost && !this.part("problem").textContent) {
        this.say(REASONS[404]);
      }
    }
    // The page shows it now.
    if (asked === null && this.sent.version !== null && choice?.verdict) this.say("");
  }

  // The checkbox of a card, or the radio button if only one candidate can be chosen.
  control(item) {
    const label = document.createElement("label");
    label.className = "pick";
    const input = document.createElement("input");
    Object.assign(input, { name: "candidate", value: item.number, checked: this.chosen.has(item.number) });
    input.type = this.asked?.at_most === 1 ? "radio" : "checkbox";
    input.setAttribute("aria-label", `Choose candidate ${item.number}`);
    input.addEventListener("change", () => this.set(item.number, input.checked));
    const text = document.createElement("span");
    text.textContent = "Choose";
    label.append(input, text);
    label.hidden = !this.isOpen;
    return label;
  }

  // The button beside the large image.
  toggle(item) {
    const button = document.createElement("button");
    button.type = "button";
    const show = () => {
      const isChosen = this.chosen.has(item.number);
      button.textContent = isChosen ? "✓ In your choice" : "Add to your choice";
      button.setAttribute("aria-pressed", String(isChosen));
      button.hidden = !this.isOpen;
    };
    button.addEventListener("click", () => {
      this.set(item.number, !this.chosen.has(item.number));
      show();
    });
    show();
    return button;
  }

  set(candidate, isChosen) {
    if (isChosen && this.asked?.at_most === 1) this.chosen.clear();
    if (isChosen) this.chosen.add(candidate);
    else this.chosen.delete(candidate);
    this.remember();
    this.say("");
    this.show();
  }

  show() {
    const { asked, chosen, isOpen } = this;
    document.body.classList.toggle("choosing", isOpen);
    this.form.hidden = !isOpen && !this.part("problem").textContent;
    for (const input of document.querySelectorAll(".pick input")) {
      input.type = asked?.at_most === 1 ? "radio" : "checkbox";
      input.checked = chosen.has(Number(input.value));
      input.parentElement.hidden = !isOpen;
      input.closest(".card")?.classList.toggle("picked", isOpen && input.checked);
    }
    for (const name of ["count", "clear", "send"]) this.part(name).hidden = !isOpen;
    if (!isOpen) return;
    const fits = chosen.size >= asked.at_least && chosen.size <= asked.at_most;
    this.part("count").textContent = `${number.format(chosen.size)} of ${this.range(asked)} chosen`;
    this.part("clear").disabled = chosen.size === 0 || this.isSending;
    this.part("send").disabled = !fits || this.isSending;
  }

  // What is chosen outlives the page: a link of it, and the login after the end of a session, leave it.
  get key() {
    return `qwenimage ${this.asked.answer_url} ${this.asked.version}`;
  }

  remember() {
    try {
      if (this.chosen.size) sessionStorage.setItem(this.key, JSON.stringify([...this.chosen]));
      else sessionStorage.removeItem(this.key);
    } catch {
      // The browser has no storage for the page.
    }
  }

  remembered() {
    try {
      const numbers = this.asked === null ? [] : JSON.parse(sessionStorage.getItem(this.key));
      return new Set(numbers);
    } catch {
      return new Set();
    }
  }

  say(text) {
    this.part("problem").textContent = text;
  }

  async send() {
    const asked = this.asked;
    const numbers = [...this.chosen].sort((one, other) => one - other);
    this.isSending = true;
    this.say("");
    this.show();
    try {
      // The candidates may have changed since the page was loaded.
      const unknown = await this.refresh();
      if (unknown) {
        this.say(`${unknown} Your choice was not sent.`);
        return;
      }
      if (this.asked?.version !== asked.version) {
        this.say(this.asked === null ? REASONS[404] : CHANGED);
        return;
      }
      const problem = await answer(asked, numbers);
      this.say(problem ?? `Your choice was sent: ${numbers.map((each) => number.format(each)).join(", ")}.`);
      if (problem === null) this.sent = { version: asked.version, at: Date.now() };
    } catch {
      this.say("Airflow cannot be reached, so your choice may not have been sent. Try again.");
    } finally {
      this.isSending = false;
      this.show();
      await this.refresh();
    }
  }
}

// Airflow takes answers to the question of a cleared task too, and then loses them.
const WAITING = ["awaiting_input", "deferred"];

// Sends an answer; returns why it was not taken, or null.
async function answer({ answer_url: address, try_number: tryNumber }, numbers) {
  const question = await fetch(address, { headers: { Accept: "application/json" } });
  if (!question.ok) return reasonOf(question);
  const { options, multiple, response_received: isAnswered, task_instance: asking } = await question.json();
  // The task was cleared after the list was read.
  if (asking.try_number !== tryNumber) return CHANGED;
  if (isAnswered) return REASONS[409];
  if (!WAITING.includes(asking.state)) return REASONS[404];
  const reply = await fetch(address, {
    method: "PATCH",
    headers: { Accept: "application/json", "Content-Type": "application/json" },
    body: JSON.stringify(answerTo(options, numbers, multiple)),
  });
  return reply.ok ? null : reasonOf(reply);
}

// See `rules.choices`: Airflow refuses options that the question did not have when it was first asked.
function answerTo(options, numbers, multiple) {
  const chosen = numbers.map(String);
  if (chosen.every((each) => options.includes(each)) && (multiple || chosen.length === 1)) {
    return { chosen_options: chosen, params_input: { [NUMBERS]: null } };
  }
  return { chosen_options: [options[0]], params_input: { [NUMBERS]: chosen.join(", ") } };
}

async function reasonOf(reply) {
  const known = REASONS[reply.status];
  if (known) return known;
  let detail = "";
  try {
    ({ detail } = await reply.json());
  } catch {
    // A proxy may answer in HTML.
  }
  const said = typeof detail === "string" && detail ? `: ${detail}` : ".";
  return `Airflow did not take your choice (HTTP ${reply.status})${said}`;
}
