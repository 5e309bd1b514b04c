// The vectorcardiogram that can be turned: drag it, or focus it and use the arrow keys; Home turns it back.
// Without this script the static pictures remain. Points are [x left, y foot, z back] in mV.
"use strict";
for (const place of document.querySelectorAll("[data-loop]")) {
  const parts = JSON.parse(place.dataset.loop);
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  const start = [-0.6, 0.3];
  let [yaw, pitch] = start;
  let held = null;
  const reach = 1.25 * Math.max(1e-3, ...parts.flatMap((part) => part.points.flat().map(Math.abs)));

  const onPage = ([x, y, z], size) => {
    const across = x * Math.cos(yaw) - z * Math.sin(yaw);
    const away = x * Math.sin(yaw) + z * Math.cos(yaw);
    const up = -y * Math.cos(pitch) + away * Math.sin(pitch);
    return [size * (0.5 + (0.5 * across) / reach), size * (0.5 - (0.5 * up) / reach)];
  };
  const line = (points, size, colour, width) => {
    pen.beginPath();
    points.forEach((point, at) => pen[at ? "lineTo" : "moveTo"](...onPage(point, size)));
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.stroke();
  };
  const draw = () => {
    const size = canvas.clientWidth;
    const ratio = window.devicePixelRatio || 1;
    if (!size) return;
    canvas.width = canvas.height = Math.round(size * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.lineJoin = "round";
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const style = getComputedStyle(place);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    ["left", "foot", "back"].forEach((word, axis) => {
      const tip = [0, 0, 0];
      tip[axis] = reach * 0.78;
      line([tip.map((value) => -value), tip], size, colour("line"), 1);
      tip[axis] = reach * 0.87;
      pen.fillStyle = colour("soft");
      pen.fillText(word, ...onPage(tip, size));
    });
    for (const { part, points } of parts) {
      line(points, size, colour(`loop-${part}`), part === "measured" ? 2.4 : 1.8);
    }
  };
  const turn = (right, down) => {
    yaw -= right;
    pitch = Math.max(-1.5, Math.min(1.5, pitch + down));
    draw();
  };

  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${place.dataset.words}; turn it with the arrow keys or by dragging`);
  canvas.addEventListener("pointerdown", (event) => {
    held = [event.clientX, event.clientY];
  });
  window.addEventListener("pointermove", (event) => {
    if (!held) return;
    turn((event.clientX - held[0]) / 90, (event.clientY - held[1]) / 90);
    held = [event.clientX, event.clientY];
  });
  for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, () => (held = null));
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] };
    if (event.key === "Home") [yaw, pitch] = start;
    else if (!steps[event.key]) return;
    event.preventDefault();
    turn(...(steps[event.key] || [0, 0]));
  });
  place.prepend(canvas);
  place.classList.add("turns");
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
