// Keeps the panels, the table and the search box about the same buffers.
//
// Bokeh calls this for every change of a selection or of the search text; `obj` is what
// changed. Selections that were made here are remembered, so that the change that they
// cause in turn is not taken for the user's.
const made = new Map()

const equal = (a, b) => a.length === b.length && a.every((x, i) => x === b[i])

const where = (source, column, test) => {
  const values = source.get_array(column)
  const found = []
  for (let i = 0; i < values.length; i++) if (test(values[i], i)) found.push(i)
  return found
}

const pick = (source, indices) => {
  made.set(source.selected, indices)
  if (!equal(source.selected.indices, indices)) source.selected.indices = indices
}

export default ({buffers, stays, copies, ops, search, shown, count, time}, obj) => {
  const text = search.value_input.trim().toLowerCase()
  if (obj === search) {
    const path = (source) => source.get_array("path")
    const matches = (source) => where(source, "name", (name, i) =>
      name.toLowerCase().includes(text) || path(source)[i].toLowerCase().includes(text))
    const lines = text === "" ? [] : matches(buffers)
    const steps = text === "" ? [] : matches(ops)
    shown.booleans = text === "" ? null : flags(new Set(lines))
    select(ids(buffers, lines), steps)
    count.text = text === "" ? "" : `${plural(lines, "buffer")}, ${plural(steps, "op")}`
    return
  }
  if (equal(made.get(obj) ?? [], obj.indices)) return

  if (obj === ops.selected) {
    const touched = ops.get_array("buffers")
    select(new Set(obj.indices.flatMap((t) => touched[t])), [...obj.indices])
  } else {
    const source = [buffers, stays, copies].find((source) => source.selected === obj)
    select(ids(source, obj.indices), null)
  }

  // The buffers of some rows.
  function ids(source, rows) {
    const of = source.get_array("buffer")
    return new Set(rows.map((i) => of[i]))
  }

  // chosen: ids of buffers. steps: the ops; null for all that touch one of the buffers.
  function select(chosen, steps) {
    const has = (id) => chosen.has(id)
    const lines = where(buffers, "buffer", has)
    if (shown.booleans !== null && lines.some((i) => !shown.booleans[i])) {
      shown.booleans = null // chosen in a panel, but not what was searched for
    }
    pick(buffers, lines)
    for (const source of [stays, copies]) pick(source, where(source, "buffer", has))
    pick(ops, steps ?? where(ops, "buffers", (touched) => touched.some(has)))
    reveal(stays.selected.indices)
  }

  // Moves the time axis if nothing of what was chosen is in view.
  function reveal(chosen) {
    if (chosen.length === 0) return
    const begin = stays.get_array("begin_us"), end = stays.get_array("end_us")
    if (chosen.some((i) => begin[i] < time.end && end[i] > time.start)) return
    const half = (time.end - time.start) / 2
    const middle = (begin[chosen[0]] + end[chosen[0]]) / 2
    time.setv({start: middle - half, end: middle + half})
  }

  function flags(rows) {
    return Array.from({length: buffers.get_length()}, (_, i) => rows.has(i))
  }

  function plural(list, word) {
    return `${list.length} ${word}${list.length === 1 ? "" : "s"}`
  }
}
