// Everything works without this file; it keeps pictures and progress of running jobs fresh.
"use strict";

function show(root, name, text) {
  const node = root.querySelector(`[data-${name}]`);
  if (node) node.textContent = text;
}

function follow(root) {
  const scope = root.dataset.atEnd ? document : root;
  const source = new EventSource(root.dataset.jobEvents);
  const first = root.querySelector("[data-step]") !== null;
  source.addEventListener("job", (event) => {
    const job = JSON.parse(event.data);
    if (!first && root.dataset.atEnd && job.state === "running") return location.reload();
    const bar = root.querySelector("[data-progress]");
    bar.max = job.steps || 1;
    bar.value = job.step;
    show(root, "step", job.step);
    show(root, "steps", job.steps);
    show(root, "remaining", job.remaining ? `, ${job.remaining}` : "");
    show(root, "message", job.message);
    const picture = scope.querySelector("[data-preview]");
    if (picture && job.preview && picture.getAttribute("src") !== job.preview) picture.src = job.preview;
  });
  source.addEventListener("end", () => {
    source.close();
    // Only the job's own page reloads by itself: elsewhere somebody may be filling in a form.
    if (root.dataset.atEnd) location.reload();
    else root.querySelector("[data-finished]").hidden = false;
  });
  source.addEventListener("error", () => {
    // A refused stream is not tried again by the browser; the page then refreshes as without script.
    if (source.readyState === EventSource.CLOSED && root.dataset.atEnd) setTimeout(() => location.reload(), 5000);
  });
}

for (const root of document.querySelectorAll("[data-job-events]")) follow(root);

document.addEventListener("keydown", (event) => {
  const search = document.querySelector("[data-search]");
  const typing = event.target instanceof HTMLElement && event.target.matches("input, select, textarea");
  if (event.key !== "/" || typing || !search || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  search.focus();
});
