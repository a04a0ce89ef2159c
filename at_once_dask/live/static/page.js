"use strict";
// Fills the page from its JSON address. What comes from users becomes text, never markup.
(() => {
    const EVERY = 1000, HIDDEN = 10000, LOST = 5000; // milliseconds between two looks
    const PATIENCE = 10000; // milliseconds for an answer: a program that is stopped gives none
    const CLOSED = "The cluster does not answer: it was closed, or its program has ended or is stopped.";
    const OTHER = "What answers here is not the cluster: something else has its address, or stands before it.";
    const asked = new URLSearchParams(location.search).get("run");
    const find = (id) => document.getElementById(id);

    async function ask(query) {
        const address = "at-once.json?" + new URLSearchParams(query);
        const answer = await fetch(address, {cache: "no-store", signal: AbortSignal.timeout(PATIENCE)});
        const facts = await answer.json();
        return answer.ok ? facts : {error: facts.error ?? OTHER};
    }

    const reason = (error) => error instanceof SyntaxError ? OTHER : CLOSED;

    function make(tag, text, name) {
        const made = document.createElement(tag);
        if (text !== undefined && text !== null) made.textContent = text;
        if (name) made.className = name;
        return made;
    }

    const number = (n) => n.toLocaleString("en-US");

    function duration(seconds) {
        if (seconds < 1) return Math.round(seconds * 1000) + " ms";
        if (seconds < 10) return seconds.toFixed(1) + " s";
        const whole = Math.round(seconds);
        if (whole < 60) return whole + " s";
        const two = (n) => String(n).padStart(2, "0");
        const minutes = Math.floor(whole / 60);
        if (minutes < 60) return minutes + ":" + two(whole % 60);
        return Math.floor(minutes / 60) + ":" + two(minutes % 60) + ":" + two(whole % 60);
    }

    function speed(rate) {
        const [times, unit] = rate >= 1 || rate === 0 ? [1, "s"] : rate * 60 >= 1 ? [60, "min"] : [3600, "h"];
        const n = rate * times;
        return (n >= 100 ? number(Math.round(n)) : n.toFixed(1)) + "/" + unit;
    }

    const clock = (begun) => new Date(begun).toLocaleTimeString();
    const named = (input, index) => input ?? (index === null ? "" : "input " + number(index));

    function row(cells, name) {
        const made = make("tr", null, name);
        for (const cell of cells) made.append(cell instanceof Node ? cell : make("td", cell));
        return made;
    }

    function showCounts(run) {
        const inputs = run.inputs;
        const facts = [
            inputs.pending ? ["pending", number(inputs.pending)] : ["processed", number(inputs.processed)],
            ["skipped", number(inputs.skipped)],
            ["failed", number(inputs.failed), inputs.failed ? "bad" : ""],
            ["left", inputs.left === null ? "?" : number(inputs.left)],
        ];
        if (run.keys) {
            facts.push(["keys reduced", number(run.keys.reduced)]);
            if (run.keys.failed) facts.push(["keys failed", number(run.keys.failed), "bad"]);
            if (run.keys.left) facts.push(["keys left", number(run.keys.left)]);
        }
        facts.push(["time", duration(run.seconds)]);
        if (run.state === "running") {
            facts.push(["rate", run.rate === null ? "?" : speed(run.rate)]);
            facts.push(["ETA", run.eta === null ? "?" : duration(Math.max(1, Math.round(run.eta)))]);
        }
        find("counts").replaceChildren(...facts.map(([name, value, kind]) => {
            const made = make("div", null, kind);
            made.dataset.count = name;
            made.append(make("dt", name), make("dd", value));
            return made;
        }));
        const total = inputs.total; // shares of what nobody knows are none
        find("bar").classList.toggle("unknown", total === null);
        const shares = {processed: inputs.processed + inputs.pending, skipped: inputs.skipped, failed: inputs.failed};
        for (const [name, n] of Object.entries(shares)) {
            find("bar").querySelector("." + name).style.width = (total ? 100 * n / total : 0) + "%";
        }
        find("bar").setAttribute("aria-label", total === null ? "nobody knows how many inputs there are"
            : Object.entries(shares).map(([name, n]) => number(n) + " " + name).join(", ") + " of " + number(total));
    }

    function showSpeed(run) { // the plot itself is a picture
        const most = Math.max(0, ...run.rates.flatMap((one) => one.points.map(([, rate]) => rate)));
        const now = run.rate === null ? "" : "now " + speed(run.rate) + ", ";
        find("plot").setAttribute("aria-label", "the rate over time: " + now + "at most " + speed(most));
    }

    function showWorkers(run) {
        find("working").hidden = run.state !== "running";
        find("workers").replaceChildren(...run.workers.map((at) => {
            const held = at.seconds === null ? "" : duration(at.seconds);
            const times = at.long && run.usual > 0 ? Math.round(at.seconds / run.usual) : 0;
            const stage = at.stage + (times ? ", " + number(times) + " × the usual" : "");
            const name = at.long ? "long" : at.seconds === null ? "idle" : "";
            return row([held, make("td", named(at.input, at.index), "input"), stage, at.worker.replace(/^.*:\/\//, "")], name);
        }));
    }

    async function showTraceback(run, cause, place) {
        try {
            place.textContent = (await ask({run, cause})).traceback || "There is no traceback.";
        } catch (error) {
            place.textContent = reason(error);
        }
    }

    function causeOf(run, cause) {
        const made = make("details");
        made.dataset.cause = cause.id;
        const summary = make("summary");
        summary.append(make("span", "", "count"), make("span", cause.error, "what"), make("span", "", "rest"));
        const facts = make("div", null, "facts");
        facts.append(make("div", cause.where ? "at " + cause.where : "", "quiet"), make("div", "", "example"));
        const traceback = make("pre", "…");
        made.append(summary, facts, traceback);
        made.addEventListener("toggle", () => made.open && showTraceback(run.id, cause.id, traceback));
        return made;
    }

    function showCauses(run) {
        const place = find("causes");
        if (place.dataset.run !== run.id) {
            place.replaceChildren();
            place.dataset.run = run.id;
        }
        const there = new Map(Array.from(place.children, (child) => [child.dataset.cause, child]));
        run.causes.forEach((cause, n) => {
            const made = there.get(cause.id) ?? causeOf(run, cause);
            there.delete(cause.id);
            made.querySelector(".count").textContent = number(cause.count) + " ×";
            made.querySelector(".rest").textContent = " in " + cause.stage + ": " + cause.message.split("\n", 1)[0];
            const example = made.querySelector(".example");
            example.replaceChildren(make("span", "for example "), make("span", named(cause.example, cause.index), "input"));
            if (place.children[n] !== made) place.insertBefore(made, place.children[n] ?? null);
        });
        for (const gone of there.values()) { // somebody reads it: while the run goes on it stays
            if (run.state !== "running" || !gone.open) gone.remove();
        }
        find("failing").hidden = !place.children.length;
        const more = run.n_causes - run.causes.length;
        find("more").hidden = !more;
        find("more").textContent = "and " + number(more) + " further causes, in the report";
    }

    function showSlowest(run) {
        find("slowest").closest("section").hidden = !run.slowest.length;
        find("slowest").replaceChildren(...run.slowest.slice(0, 10).map((slow) =>
            row([duration(slow.seconds), make("td", named(slow.input, slow.index), "input")])));
    }

    function showRuns(runs, chosen) {
        find("runs").replaceChildren(...runs.map((run, n) => {
            const link = make("a", run.name);
            link.href = n ? "?run=" + encodeURIComponent(run.id) : "?";
            const cell = make("td", null, "input");
            cell.append(link);
            const n_failed = run.inputs.failed + (run.keys ? run.keys.failed : 0);
            const failed = n_failed ? ", " + number(n_failed) + " failed" : "";
            const total = run.inputs.total === null ? "?" : number(run.inputs.total);
            return row([clock(run.begun), cell, run.state, total + failed], run.id === chosen ? "chosen" : "");
        }));
    }

    function show({runs, run}) {
        find("empty").hidden = run !== null;
        find("one").hidden = run === null;
        if (run === null) return;
        find("name").textContent = run.name;
        find("state").textContent = run.state === "running" ? "running: " + run.phase : run.state;
        find("state").className = run.state;
        find("about").textContent = "begun at " + clock(run.begun) + ", run " + run.id;
        find("reason").hidden = !run.reason;
        find("reason").textContent = run.reason;
        find("what").textContent = run.keys ? "Inputs, then keys, a second" : "Inputs a second";
        showCounts(run);
        showSpeed(run);
        showWorkers(run);
        showCauses(run);
        showSlowest(run);
        showRuns(runs, run.id);
        document.title = (run.state === "running" ? "" : run.state + ": ") + run.name + " – At once";
    }

    function notice(text) {
        find("notice").hidden = !text;
        find("notice").textContent = text;
    }

    let timer = null;
    async function look() {
        clearTimeout(timer);
        let pause = document.hidden ? HIDDEN : EVERY;
        try {
            const facts = await ask(asked ? {run: asked} : {});
            if (!facts.error) show(facts);
            notice(facts.error);
        } catch (error) {
            notice(reason(error) + " This is what was seen last.");
            pause = LOST;
        }
        clearTimeout(timer);
        timer = setTimeout(look, pause);
    }

    document.addEventListener("visibilitychange", () => document.hidden || look());
    for (const link of document.querySelectorAll("#myTopnav a[href='at-once']")) link.closest("li").classList.add("active");
    look();
})();
