// Players of one episode start together, and again when all have ended. Without this script each plays by itself.
addEventListener("load", () => {
  for (const row of document.querySelectorAll("[data-together]")) {
    const films = [...row.querySelectorAll("video")];
    const button = row.querySelector("button");
    let again;
    const start = () => {
      clearTimeout(again);
      for (const film of films) {
        film.currentTime = 0;
        film.play().catch(() => {});
      }
    };
    for (const film of films) {
      film.loop = false;
      film.addEventListener("ended", () => {
        if (films.every((other) => other.ended)) again = setTimeout(start, 1500);
      });
    }
    button.hidden = false;
    button.addEventListener("click", start);
    start();
  }
});
