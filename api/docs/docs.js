// The page is complete without this script. It adds a copy button to each sample, points the samples
// of the public listener at the server that serves the page, and marks where the reader is.

const specimen = "https://api.syncgrampay.com";

for (const code of document.querySelectorAll("figure.code code")) {
  const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    walker.currentNode.data = walker.currentNode.data.replace(specimen, location.origin);
  }
}

if (navigator.clipboard) {
  for (const figure of document.querySelectorAll("figure.code")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(figure.querySelector("code").textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not allowed";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    figure.querySelector("figcaption").append(button);
  }
}

const menu = document.querySelector("details.menu");
menu.addEventListener("click", (event) => {
  if (event.target.closest("a")) menu.open = false;
});
menu.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

const links = new Map([...document.querySelectorAll("nav.side a")].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver((entries) => {
  const entry = entries.find((e) => e.isIntersecting);
  if (!entry) return;
  for (const a of links.values()) a.removeAttribute("aria-current");
  const link = links.get(entry.target.id);
  link.setAttribute("aria-current", "true");
  link.scrollIntoView({ block: "nearest", behavior: "instant" });
}, { rootMargin: "-64px 0px -75% 0px" });
for (const id of links.keys()) {
  const heading = document.getElementById(id);
  if (heading && id !== "main") seen.observe(heading);
}
