// The canvas of the page's editor: a picture, what is painted on it, and the whole tokens that this touches.
// `props.value` is what Python sets: {picture, width, height, columns, rows} as JSON; a picture is a data URL.
// `window.mixarPaint()` is what is sent back: {picture, mask} as JSON, the mask white where it is painted.
const SHOWN = 512, LARGEST = 768;
const canvas = element.querySelector("canvas"), context = canvas.getContext("2d");
const brush = element.querySelector(".brush"), hint = element.querySelector(".hint");
let about = {width: 64, height: 64, columns: 8, rows: 8}, picture = null, mask = null, last = null, erasing = false;

function show() {
  const {width, height, columns, rows} = about;
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#8881";
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  else context.fillRect(0, 0, canvas.width, canvas.height);
  const right = canvas.width / width, down = canvas.height / height, touched = new Set();
  for (let at = 0; at < mask.length; at++) if (mask[at]) {
    const x = at % width, y = Math.floor(at / width);
    touched.add(Math.floor(x * columns / width) + columns * Math.floor(y * rows / height));
    context.fillStyle = "#d0f6";
    context.fillRect(x * right, y * down, right, down);
  }
  const wide = canvas.width / columns, high = canvas.height / rows;
  for (const token of touched) {
    context.fillStyle = "#d0f4";
    context.fillRect(token % columns * wide, Math.floor(token / columns) * high, wide, high);
  }
  hint.textContent = !picture ? "Open a picture, or draw one and press “Edit this picture”."
    : touched.size ? `${touched.size} of ${columns * rows} tokens will be drawn anew.`
    : "Paint over what is to be drawn anew.";
}

function clear() {
  mask = new Uint8Array(about.width * about.height);
  show();
}

function paint(x, y) {
  const radius = Number(brush.value) / 2 * about.width / 64, {width, height} = about;
  for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(height - 1, y + radius); row++)
    for (let column = Math.max(0, Math.floor(x - radius)); column <= Math.min(width - 1, x + radius); column++)
      if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= Math.max(radius, 0.71)) mask[row * width + column] = erasing ? 0 : 1;
}

function stroke(event) {
  if (!last || !picture) return;
  const box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * about.width, y = (event.clientY - box.top) / box.height * about.height;
  const pieces = Math.max(1, Math.ceil(Math.hypot(x - last.x, y - last.y)));
  for (let k = 1; k <= pieces; k++) paint(last.x + (x - last.x) * k / pieces, last.y + (y - last.y) * k / pieces);
  last = {x, y};
  show();
}

async function take() {
  const value = JSON.parse(props.value || "{}");
  about = {...about, ...value};
  canvas.width = SHOWN;
  canvas.height = Math.round(SHOWN * about.height / about.width);
  picture = null;
  if (value.picture) {
    picture = new Image();
    picture.src = value.picture;
    await picture.decode();
  }
  clear();
}

async function open(file) {
  if (!file) return;
  let found;
  try { found = await createImageBitmap(file); } catch { hint.textContent = `${file.name} is no picture that a browser can show.`; return; }
  const less = Math.min(1, LARGEST / Math.max(found.width, found.height)), small = document.createElement("canvas");
  small.width = Math.max(1, Math.round(found.width * less));
  small.height = Math.max(1, Math.round(found.height * less));
  const plain = small.getContext("2d");
  plain.fillStyle = "white";
  plain.fillRect(0, 0, small.width, small.height);
  plain.drawImage(found, 0, 0, small.width, small.height);
  trigger("upload", {picture: small.toDataURL("image/png")});
}

window.mixarPaint = () => {
  const image = new ImageData(about.width, about.height), small = document.createElement("canvas");
  mask.forEach((painted, at) => image.data.set(painted ? [255, 255, 255, 255] : [0, 0, 0, 255], 4 * at));
  small.width = about.width;
  small.height = about.height;
  small.getContext("2d").putImageData(image, 0, 0);
  return JSON.stringify({picture: picture ? picture.src : null, mask: small.toDataURL("image/png")});
};

canvas.addEventListener("pointerdown", event => {
  const box = canvas.getBoundingClientRect();
  canvas.setPointerCapture(event.pointerId);
  erasing = event.button === 2 || element.querySelector(".erase").checked;
  last = {x: (event.clientX - box.left) / box.width * about.width, y: (event.clientY - box.top) / box.height * about.height};
  stroke(event);
});
canvas.addEventListener("pointermove", stroke);
canvas.addEventListener("pointerup", () => { last = null; });
canvas.addEventListener("contextmenu", event => event.preventDefault());
canvas.addEventListener("dragover", event => event.preventDefault());
canvas.addEventListener("drop", event => { event.preventDefault(); open(event.dataTransfer.files[0]); });
element.querySelector(".clear").addEventListener("click", clear);
element.querySelector("input[type=file]").addEventListener("change", event => { open(event.target.files[0]); event.target.value = ""; });
watch("value", take);
take();
