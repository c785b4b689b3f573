// The theme wraps wide tables in regions that scroll: a keyboard must be able to reach them.
const reach = () => document.querySelectorAll(".md-typeset__scrollwrap").forEach((region) => { region.tabIndex = 0; });
new MutationObserver(reach).observe(document.documentElement, { childList: true, subtree: true });
reach();
