"use strict";
(() => {
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const one = (query, within = document) => within.querySelector(query);
  const root = document.documentElement;
  root.classList.add("js");
  all("header .tools").forEach((tools) => (tools.hidden = false));

  const said = one("#said");
  let silence = 0;
  const say = (text) => {
    said.textContent = text;
    clearTimeout(silence);
    silence = setTimeout(() => (said.textContent = ""), 2500);
  };

  // theme: kept in this page only
  const themes = ["auto", "light", "dark"];
  const theme = one("#theme");
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % 3];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    theme.textContent = "Theme: " + next;
  });

  // copy as Markdown
  one("#copy").addEventListener("click", async () => {
    const text = JSON.parse(one("#report-data").textContent).markdown;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    say("Copied.");
  });

  // tables: sort by a column, numbers by their value
  const key = (cell) => (cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v));
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return a.localeCompare(b, undefined, { numeric: true });
  };
  all("table.sortable thead button").forEach((button) =>
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const up = head.getAttribute("aria-sort") !== "ascending";
      all("th", head.parentNode).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = one("tbody", head.closest("table"));
      const column = head.cellIndex;
      const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
      rows.sort((a, b) => (up ? 1 : -1) * compare(a[0], b[0]));
      body.append(...rows.map((pair) => pair[1]));
    })
  );

  // heat maps: each by its own box, all of a section by its button, all of the page by a key
  const heats = (within) => all(".heat input", within);
  const press = (boxes) => {
    const on = !boxes.every((box) => box.checked);
    boxes.forEach((box) => (box.checked = on));
  };
  all(".heats").forEach((tools) => {
    tools.hidden = false;
    one("button", tools).addEventListener("click", () => press(heats(tools.closest("section"))));
  });

  // pictures: enlarged, with the arrows through those of the same section
  const lightbox = one("#lightbox");
  let shots = [];
  let place = 0;
  const show = (step) => {
    place = (place + step + shots.length) % shots.length;
    const thumb = shots[place];
    const small = one("img", thumb);
    const large = one("img", lightbox);
    large.src = thumb.dataset.large || small.src;
    large.alt = small.alt;
    const over = one(".overlay", lightbox);
    const heat = one(".heat input", thumb.parentNode);
    over.hidden = !heat || !heat.checked;
    if (heat) over.src = one(".overlay", thumb).src;
    one("p", lightbox).textContent = small.alt;
    one(".place", lightbox).textContent = place + 1 + " of " + shots.length;
  };
  all("button.thumb").forEach((thumb) =>
    thumb.addEventListener("click", () => {
      shots = all("button.thumb", thumb.closest("section"));
      place = shots.indexOf(thumb);
      show(0);
      lightbox.showModal();
    })
  );
  all("[data-step]").forEach((button) =>
    button.addEventListener("click", () => show(Number(button.dataset.step)))
  );
  lightbox.addEventListener("close", () => shots[place] && shots[place].focus());
  const help = one("#help");
  [lightbox, help].forEach((dialog) =>
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
    })
  );
  one("#keys").addEventListener("click", () => help.showModal());

  // keys
  const sections = all("main > section");
  const go = (step) => {
    const line = 8;
    const tops = sections.map((section) => section.getBoundingClientRect().top - bar());
    const here = tops.filter((top) => top <= line).length - 1;
    const exact = here >= 0 && Math.abs(tops[here]) <= line;
    const next = step > 0 ? here + 1 : exact ? here - 1 : here;
    const section = sections[Math.min(sections.length - 1, Math.max(0, next))];
    section.scrollIntoView();
    history.replaceState(null, "", "#" + section.id);
  };
  const contents = one("details.bar");
  const bar = () => (getComputedStyle(contents).display === "none" ? 16 : 56);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (lightbox.open) {
      if (event.key === "ArrowLeft") show(-1);
      if (event.key === "ArrowRight") show(1);
      if (event.key === "m") {
        press(heats(shots[place].parentNode));
        show(0);
      }
      return;
    }
    if (help.open || event.target.matches("textarea, select")) return;
    if (event.key === "j") go(1);
    else if (event.key === "k") go(-1);
    else if (event.key === "m") press(heats(document));
    else if (event.key === "?") help.showModal();
  });
  all("a", contents).forEach((link) => link.addEventListener("click", () => (contents.open = false)));

  // contents: the section that is being read
  const links = new Map(all("nav.side a").map((link) => [link.getAttribute("href").slice(1), link]));
  if ("IntersectionObserver" in window) {
    const seen = new Set();
    const watch = new IntersectionObserver(
      (entries) => {
        entries.forEach((entry) =>
          entry.isIntersecting ? seen.add(entry.target) : seen.delete(entry.target)
        );
        const first = sections.find((section) => seen.has(section));
        if (!first) return;
        links.forEach((link) => link.removeAttribute("aria-current"));
        const link = links.get(first.id);
        if (link) link.setAttribute("aria-current", "true");
      },
      { rootMargin: "-72px 0px -60% 0px" }
    );
    sections.forEach((section) => watch.observe(section));
  }

  // paper: everything but the charts' data is opened
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("main details:not([open]):not(.data)");
    closed.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => closed.forEach((details) => (details.open = false)));
})();
