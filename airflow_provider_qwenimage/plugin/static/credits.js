// Gives the page Credits the colors of Airflow, and has its links open there.

const { followTheme, openInAirflow } = await import(`./airflow.js${new URL(import.meta.url).search}`);

followTheme();
for (const link of document.querySelectorAll("a[data-task]")) link.addEventListener("click", openInAirflow);
