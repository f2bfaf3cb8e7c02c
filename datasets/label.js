// Labels are set by keys or buttons, and each is saved at once. One that another page has set since is shown first.
const labelling = JSON.parse(document.getElementById("labelling-values").textContent);
const bar = document.getElementById("labelling");
const [shown, progress, trouble] = ["#label", "#progress", "#trouble"].map((name) => bar.querySelector(name));
const marks = { s: { success: true }, m: { success: true, here: true }, f: { success: false }, u: { success: null } };
let queue = Promise.resolve();

function words(label) {
  if (!label || label.success === null) return "unknown";
  const from = label.frame === undefined ? "" : ` from frame ${label.frame} on`;
  const chance = label.probability === undefined ? "" : `, probability ${label.probability.toFixed(2)}`;
  return `${label.success ? "success" : "failed"}${from} (by ${label.by}${chance})`;
}

function refresh() {
  const { counts, labels, numbers } = labelling;
  const label = labels[numbers[current]];
  shown.textContent = `Episode ${numbers[current]}: ${words(label)}`;
  shown.className = label && label.success !== null ? (label.success ? "good" : "warn") : "soft";
  progress.textContent = `${counts.success + counts.failed} of ${counts.episodes} labelled`;
}

function step(by) {
  const to = current + by;
  if (to >= 0 && to < episodes.length) return choose(to);
  const page = by > 0 ? labelling.next : labelling.previous;
  if (page !== null) queue.then(() => location.assign(`?from=${page}`));
}

async function save(index, mark, frame) {
  const number = labelling.numbers[index];
  const seen = labelling.labels[number] ? labelling.labels[number].version : 0;
  const body = JSON.stringify({ episode: number, success: mark.success, frame: mark.here ? frame : null, seen });
  let text = "";
  try {
    const answer = await fetch("label", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const content = await answer.json();
    if (content.label) {
      labelling.labels[number] = content.label;
      labelling.counts = content.counts;
    }
    if (answer.status === 409) text = `Episode ${number} was labelled ${words(content.label)} in another page meanwhile, which was kept; press the key again to replace it.`;
    else if (!answer.ok) text = `Episode ${number} was not saved: ${content.error}`;
  } catch {
    text = `Episode ${number} was not saved: the server does not answer. Start gtp-vision data label again; earlier labels are saved.`;
  }
  trouble.textContent = text;
  trouble.hidden = !text;
  if (!text && index === current && !mark.here && mark.success !== null) step(1);
  refresh();
}

function label(mark) {
  const [index, frame] = [current, episodes[current].moments[Number(slider.value)]];
  queue = queue.then(() => save(index, mark, frame)); // one after another
}

document.addEventListener("chosen", refresh);
addEventListener("keydown", (event) => {
  if (event.target === chooser || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  const mark = marks[event.key.toLowerCase()];
  if (by) step(by);
  else if (mark) label(mark);
  else return;
  event.preventDefault();
});
for (const [key, mark] of Object.entries(marks)) {
  bar.querySelector(`[data-key=${key}]`).addEventListener("click", () => label(mark));
}
refresh();
