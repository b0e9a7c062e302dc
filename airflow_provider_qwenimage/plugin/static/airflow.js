// What pages need to know about the page of Airflow around them.

export function followTheme() {
  const root = document.documentElement;
  const mark = () => {
    let dark = matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.removeProperty("--page");
    try {
      const classes = window.parent.document.documentElement.classList;
      const stored = localStorage.getItem("theme");
      if (window.parent !== window && (classes.contains("dark") || classes.contains("light"))) {
        dark = classes.contains("dark");
        // The background color of Airflow, which differs between its versions and themes.
        const around = window.parent.document;
        const colors = [around.body, around.documentElement].map((part) => getComputedStyle(part).backgroundColor);
        const background = colors.find((color) => color.startsWith("rgb(") || color.startsWith("color("));
        if (background) root.style.setProperty("--page", background);
      } else if (stored === "dark" || stored === "light") {
        dark = stored === "dark";
      }
    } catch {
      // The page is embedded in another page than Airflow's.
    }
    root.dataset.theme = dark ? "dark" : "light";
  };
  mark();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", mark);
  addEventListener("storage", mark);
  try {
    new MutationObserver(mark).observe(window.parent.document.documentElement, { attributeFilter: ["class"] });
  } catch {
    // The page is embedded in another page than Airflow's.
  }
}

// The frame of a tab may neither navigate the window nor open another one, but Airflow's page may.
export function openInAirflow(event) {
  if (window.parent === window || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const link = window.parent.document.createElement("a");
  const { href, target, rel, referrerPolicy } = event.currentTarget;
  Object.assign(link, { href, target: target === "_blank" ? target : "", rel, referrerPolicy });
  link.click();
}
