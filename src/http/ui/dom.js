// Builds elements. Texts become text nodes, never HTML: the names of VMs and disks are not trusted.

const SVG = "http://www.w3.org/2000/svg";

// Sets attributes: `on` has event listeners, `true` sets an empty attribute, `null` and `false` leave it out.
function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, String(value));
    }
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export function h(tag, attributes, ...children) {
  return build(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

// A name that a user chose. It cannot change the direction of the text around it.
export function name(text) {
  return h("bdi", {}, text);
}

// Replaces the children, and keeps the focus on the element with the same link or `data-key`.
export function replace(container, ...children) {
  const focused = container.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.dataset.key;
  const link = focused?.getAttribute("href");
  container.replaceChildren(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  if (!focused || container.contains(document.activeElement)) return;
  const again = [...container.querySelectorAll("a[href], button, input, select, summary")];
  again.find((element) => (key ? element.dataset.key === key : link && element.getAttribute("href") === link))?.focus();
}

// The address of a view in this page, from the parts of its path.
export function address(...parts) {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}
