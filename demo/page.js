// The player and the picture of the recording are one: a cursor follows the sound, and a click on the picture seeks.
(() => {
  const player = () => document.querySelector("#recording audio");
  const play = () => player().play().catch(() => {}); // a browser may want another click first
  const pictures = () => document.querySelectorAll(".seekable");
  let playNext = false;

  // Media events do not bubble: they are caught on their way down.
  const follow = () =>
    requestAnimationFrame(() => {
      const audio = player();
      if (!audio) return;
      for (const picture of pictures())
        picture.style.setProperty("--played", Math.min(audio.currentTime / picture.dataset.duration, 1));
      if (!audio.paused) follow();
    });
  for (const event of ["play", "seeked", "timeupdate"])
    document.addEventListener(event, (e) => e.target === player() && follow(), true);

  document.addEventListener("canplay", (e) => {
    if (!playNext || e.target !== player()) return;
    playNext = false;
    play();
  }, true);

  document.addEventListener("click", (e) => {
    if (e.target.closest("#examples button")) playNext = true;
    const plot = e.target.closest(".seekable .plot");
    if (!plot || !player()) return;
    const { left, width } = plot.getBoundingClientRect();
    player().currentTime = ((e.clientX - left) / width) * plot.closest(".seekable").dataset.duration;
    play();
  });
})();
