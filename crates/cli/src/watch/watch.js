// The page of a run, anew every few seconds while the run goes on and somebody looks.
(() => {
  const main = () => document.querySelector("main");
  const state = document.createElement("p");
  state.setAttribute("role", "status");
  state.className = "lead";
  state.textContent = "live";
  main().before(state);

  // What the reader has unfolded stays so, and what is marked is not taken away.
  function show(page) {
    const open = [...main().querySelectorAll("details")].map((it) => it.open);
    main().replaceWith(page.querySelector("main"));
    main().querySelectorAll("details").forEach((it, i) => (it.open = open[i] ?? false));
    document.title = page.title;
  }

  async function refresh() {
    if (!document.hidden && getSelection().isCollapsed) {
      try {
        const answer = await fetch("/", { cache: "no-store" });
        if (!answer.ok) throw new Error(answer.statusText);
        show(new DOMParser().parseFromString(await answer.text(), "text/html"));
        state.textContent = `live, as of ${new Date().toLocaleTimeString()}`;
      } catch {
        state.textContent = "The run has ended or stopped. This is the last that was seen of it; report.html has all.";
      }
    }
    setTimeout(refresh, 5000);
  }
  setTimeout(refresh, 5000);
})();
