// Long lists: type to filter; of tables, touch a heading to sort.
for (const list of document.querySelectorAll("[data-long]")) {
  const items = [...list.children], table = list.closest("table");
  const box = document.createElement("input");
  box.className = "filter", box.type = "search";
  box.placeholder = box.ariaLabel = `Find in ${items.length}`;
  box.oninput = () => items.forEach((item) => {
    item.hidden = !item.textContent.toLowerCase()
      .includes(box.value.toLowerCase());
  });
  (list.closest(".scroll") || list).before(box);
  [...(table ? table.tHead.rows[0].cells : [])].forEach((head, column) => {
    let sign = 1;
    const of = (row) => row.cells[column].textContent;
    head.className = "sortable";
    head.onclick = () => {
      items.sort((a, b) => sign * (of(a) - of(b) || of(a).localeCompare(of(b))));
      list.append(...items);
      sign = -sign;
    };
  });
}
