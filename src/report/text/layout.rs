//! Lays out a table as aligned text that fits a width: as one table, or as several blocks of
//! columns below each other.

use textwrap::core::display_width;

/// Spaces before a column.
const GAP: usize = 2;

/// Spaces before the first column of a group with a title.
const GROUP_GAP: usize = 3;

/// A column of the printed table.
#[derive(Clone)]
pub(crate) struct TextColumn {
    title: String,
    cells: Vec<String>,
    /// Numeric columns are aligned to the right.
    is_numeric: bool,
}

/// Columns that stay side by side, below a common title; without a title, columns that are
/// independent of each other.
pub(crate) struct ColumnGroup {
    pub(crate) title: Option<String>,
    pub(crate) columns: Vec<TextColumn>,
}

/// What the rows of the table are: their names, and the columns of the first block.
pub(crate) struct RowNames {
    /// The names in the first block.
    pub(crate) full: TextColumn,
    /// The names in the other blocks.
    pub(crate) short: TextColumn,
    /// How many rows stand above those of the variants. Such a row is left out of a block in which
    /// it has no cell.
    pub(crate) header_count: usize,
}

impl TextColumn {
    pub(crate) fn new(title: &str, cells: Vec<String>, is_numeric: bool) -> Self {
        Self {
            title: title.to_owned(),
            cells,
            is_numeric,
        }
    }

    /// The width of the longest cell.
    fn width(&self) -> usize {
        let cell_widths = self.cells.iter().map(|cell| display_width(cell));
        cell_widths.fold(display_width(&self.title), usize::max)
    }

    fn pad(&self, text: &str, width: usize) -> String {
        let padding = " ".repeat(width.saturating_sub(display_width(text)));
        if self.is_numeric {
            padding + text
        } else {
            text.to_owned() + &padding
        }
    }

    /// Cuts cells that are wider than `width`. The end of a text is kept: it tells paths apart.
    fn cut_cells(&mut self, width: usize) {
        for cell in &mut self.cells {
            *cell = keep_end(cell, width);
        }
    }
}

/// The text, or `…` and its end if it is wider than `width`.
pub(crate) fn keep_end(text: &str, width: usize) -> String {
    if display_width(text) <= width {
        return text.to_owned();
    }
    let mut characters: Vec<char> = text.chars().rev().collect();
    while display_width(&String::from_iter(&characters)) >= width {
        characters.pop();
    }
    ['…'].iter().chain(characters.iter().rev()).collect()
}

impl ColumnGroup {
    /// A group of one column without a title.
    pub(crate) fn single(column: TextColumn) -> Self {
        Self {
            title: None,
            columns: vec![column],
        }
    }

    /// The spaces before the group.
    fn gap(&self) -> usize {
        if self.title.is_some() { GROUP_GAP } else { GAP }
    }

    /// The width of its columns, without the title.
    fn columns_width(&self) -> usize {
        let widths: usize = self.columns.iter().map(TextColumn::width).sum();
        widths + GAP * self.columns.len().saturating_sub(1)
    }

    /// The width with the spaces before it.
    pub(crate) fn width_with_gap(&self) -> usize {
        self.gap() + self.width()
    }

    fn width(&self) -> usize {
        let title_width = self.title.as_deref().map_or(0, display_width);
        self.columns_width().max(title_width)
    }
}

/// The columns of one block, with the names of the rows in front.
struct Block<'a> {
    names: &'a TextColumn,
    groups: Vec<&'a ColumnGroup>,
}

/// The table as one block if it fits, else as several. A block is wider than `width` only if a
/// single group is.
pub(crate) fn format_blocks(
    mut names: RowNames,
    mut descriptions: Vec<ColumnGroup>,
    metrics: &[ColumnGroup],
    width: usize,
) -> String {
    let room = width.saturating_sub(names.full.width() + GAP).max(12);
    for column in descriptions.iter_mut().flat_map(|group| &mut group.columns) {
        column.cut_cells(room);
    }
    let groups: Vec<&ColumnGroup> = descriptions.iter().chain(metrics).collect();
    for row in 0..names.header_count {
        if !has_cells(&groups, row) {
            names.full.cells[row].clear();
            names.short.cells[row].clear();
        }
    }
    let blocks = arrange(&names, &descriptions, metrics, width);
    let blocks = blocks.iter().map(|block| block.format(names.header_count));
    blocks.collect::<Vec<_>>().join("\n")
}

/// The descriptions with the full names of the rows, then the metrics with the short ones. Metrics
/// stand beside the descriptions if that saves a block.
fn arrange<'a>(
    names: &'a RowNames,
    descriptions: &'a [ColumnGroup],
    metrics: &'a [ColumnGroup],
    width: usize,
) -> Vec<Block<'a>> {
    let descriptions: Vec<&ColumnGroup> = descriptions.iter().collect();
    let metrics: Vec<&ColumnGroup> = metrics.iter().collect();
    let all = [&descriptions[..], &metrics[..]].concat();
    let first = pack(&names.full, &all, width, usize::MAX).remove(0);
    let beside_count = first.len().saturating_sub(descriptions.len());
    let beside = pack_evenly(&names.short, &metrics[beside_count..], width);
    let apart = pack_evenly(&names.short, &metrics, width);
    let (full, short) = if beside_count > 0 && beside.len() < apart.len() {
        (vec![first], beside)
    } else {
        (pack(&names.full, &descriptions, width, usize::MAX), apart)
    };
    let block = |names| move |groups| Block { names, groups };
    let full = full.into_iter().map(block(&names.full));
    full.chain(short.into_iter().map(block(&names.short)))
        .collect()
}

/// Whether any column has a cell in this row.
fn has_cells(groups: &[&ColumnGroup], row: usize) -> bool {
    let mut columns = groups.iter().flat_map(|group| &group.columns);
    columns.any(|column| !column.cells[row].is_empty())
}

fn block_width(names: &TextColumn, groups: &[&ColumnGroup]) -> usize {
    let groups = groups.iter().map(|group| group.width_with_gap());
    names.width() + groups.sum::<usize>()
}

/// Distributes groups over as many blocks as needed, in their order, at most `max_count` in each.
/// There is always one block, even without a group.
fn pack<'a>(
    names: &TextColumn,
    groups: &[&'a ColumnGroup],
    width: usize,
    max_count: usize,
) -> Vec<Vec<&'a ColumnGroup>> {
    let mut blocks = vec![Vec::new()];
    for &group in groups {
        let last_index = blocks.len() - 1;
        let last: &mut Vec<&ColumnGroup> = &mut blocks[last_index];
        last.push(group);
        let is_too_full = last.len() > max_count || block_width(names, last) > width;
        if is_too_full && last.len() > 1 {
            last.pop();
            blocks.push(vec![group]);
        }
    }
    blocks
}

/// As [`pack`], with about the same number of groups in each block; none without a group.
fn pack_evenly<'a>(
    names: &TextColumn,
    groups: &[&'a ColumnGroup],
    width: usize,
) -> Vec<Vec<&'a ColumnGroup>> {
    if groups.is_empty() {
        return Vec::new();
    }
    let block_count = pack(names, groups, width, usize::MAX).len();
    let even = pack(names, groups, width, groups.len().div_ceil(block_count));
    if even.len() == block_count {
        even
    } else {
        pack(names, groups, width, usize::MAX)
    }
}

impl Block<'_> {
    /// The names and the columns side by side, below their titles and a rule. Of the first
    /// `header_count` rows, those without a cell are left out.
    fn format(&self, header_count: usize) -> String {
        let mut text = String::new();
        if self.groups.iter().any(|group| group.title.is_some()) {
            text.push_str(&self.title_line());
        }
        text.push_str(&self.line(|column, _| column.title.clone()));
        text.push_str(&self.line(|_, width| "─".repeat(width)));
        for row in 0..self.names.cells.len() {
            if row >= header_count || has_cells(&self.groups, row) {
                text.push_str(&self.line(|column, _| column.cells[row].clone()));
            }
        }
        text
    }

    /// The titles of the groups, each above its first column.
    fn title_line(&self) -> String {
        let mut line = " ".repeat(self.names.width());
        for group in &self.groups {
            let title = group.title.as_deref().unwrap_or_default();
            let padding = group.width().saturating_sub(display_width(title));
            line.push_str(&" ".repeat(group.gap()));
            line.push_str(title);
            line.push_str(&" ".repeat(padding));
        }
        line.trim_end().to_owned() + "\n"
    }

    /// A line; `cell` gives the text of a column, which has this width.
    fn line(&self, cell: impl Fn(&TextColumn, usize) -> String) -> String {
        let padded = |column: &TextColumn| {
            let width = column.width();
            column.pad(&cell(column, width), width)
        };
        let mut line = padded(self.names);
        for group in &self.groups {
            let cells: Vec<String> = group.columns.iter().map(padded).collect();
            line.push_str(&" ".repeat(group.gap()));
            line.push_str(&cells.join(&" ".repeat(GAP)));
            line.push_str(&" ".repeat(group.width() - group.columns_width()));
        }
        line.trim_end().to_owned() + "\n"
    }
}
