// One episode is shown at a time. Slider, arrow keys, Play, or a click into a panel choose the moment.
const { fps, episodes } = JSON.parse(document.getElementById("values").textContent);
const sections = [...document.querySelectorAll("section")];
const controls = document.getElementById("controls");
const [chooser, button, slider, position] = ["select", "button", "input", "output"].map((name) => controls.querySelector(name));
let current = 0;
let timer = 0;

const share = (number, of) => (of > 1 ? (100 * number) / (of - 1) : 0);

function draw() {
  const section = sections[current];
  const { moments, panels } = episodes[current];
  const moment = Number(slider.value);
  const frame = moments[moment];
  position.textContent = `frame ${frame} / ${moments[moments.length - 1]}`;
  for (const film of section.querySelectorAll(".film")) {
    const columns = Number(film.dataset.columns);
    const place = Math.floor(moment / Number(film.dataset.every));
    const across = share(place % columns, columns);
    const down = share(Math.floor(place / columns), Number(film.dataset.lines));
    film.style.backgroundPosition = `${across}% ${down}%`;
  }
  section.querySelectorAll("svg").forEach((svg, index) => {
    const at = (svg.viewBox.baseVal.width * frame) / Math.max(1, moments[moments.length - 1]);
    const line = svg.querySelector("line");
    line.setAttribute("x1", at);
    line.setAttribute("x2", at);
    const values = svg.closest(".plot").parentElement.querySelectorAll(".values output");
    values.forEach((output, number) => {
      output.textContent = panels[index][number][moment] ?? "–";
    });
  });
}

function choose(episode) {
  current = episode;
  chooser.value = String(episode);
  sections.forEach((section, index) => {
    section.hidden = index !== episode;
  });
  slider.max = String(episodes[episode].moments.length - 1);
  slider.value = "0";
  draw();
  document.dispatchEvent(new Event("chosen"));
}

function stop() {
  clearInterval(timer);
  timer = 0;
  button.textContent = "Play";
}

function toggle() {
  if (timer) return stop();
  if (slider.value === slider.max) slider.value = "0";
  button.textContent = "Pause";
  timer = setInterval(() => {
    slider.value = String(Number(slider.value) + 1);
    draw();
    if (slider.value === slider.max) stop();
  }, 1000 / fps);
}

function go(moment) {
  stop();
  slider.value = String(moment);
  draw();
}

slider.addEventListener("input", () => go(slider.value));
chooser.addEventListener("change", () => {
  stop();
  choose(Number(chooser.value));
});
button.addEventListener("click", toggle);
addEventListener("keydown", (event) => {
  if (event.target === chooser || event.ctrlKey || event.metaKey || event.altKey) return;
  const far = event.shiftKey ? 10 : 1;
  const wanted = { ArrowLeft: -far, ArrowRight: far }[event.key];
  if (wanted !== undefined) go(Math.max(0, Math.min(Number(slider.max), Number(slider.value) + wanted)));
  else if (event.key === " " && !event.target.closest("button, summary")) toggle();
  else return;
  event.preventDefault();
});
for (const svg of document.querySelectorAll(".plot svg")) {
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const { moments } = episodes[current];
    const frame = ((event.clientX - box.left) / box.width) * moments[moments.length - 1];
    let nearest = 0;
    moments.forEach((moment, index) => {
      if (Math.abs(moment - frame) < Math.abs(moments[nearest] - frame)) nearest = index;
    });
    go(nearest);
  };
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointermove", (event) => event.buttons && point(event));
}

document.body.classList.add("alive");
controls.hidden = false;
choose(0);
