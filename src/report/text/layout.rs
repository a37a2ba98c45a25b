//! Lays out a table as aligned text.

/// A column of the printed table.
pub(crate) struct TextColumn {
    pub(crate) title: String,
    pub(crate) cells: Vec<String>,
    /// Numeric columns are aligned to the right.
    pub(crate) is_numeric: bool,
}

impl TextColumn {
    /// A column whose first cells belong to the header rows.
    pub(crate) fn new(
        title: &str,
        header_cells: Vec<String>,
        cells: Vec<String>,
        is_numeric: bool,
    ) -> Self {
        Self {
            title: title.to_owned(),
            cells: header_cells.into_iter().chain(cells).collect(),
            is_numeric,
        }
    }

    /// The characters of the longest cell.
    fn width(&self) -> usize {
        let cell_widths = self.cells.iter().map(|cell| cell.chars().count());
        let title_width = self.title.chars().count();
        cell_widths.fold(title_width, usize::max)
    }

    fn pad(&self, text: &str, width: usize) -> String {
        if self.is_numeric {
            format!("{text:>width$}")
        } else {
            format!("{text:<width$}")
        }
    }
}

/// The rows above those of the variants.
#[derive(Clone, Copy)]
pub(crate) struct HeaderRows {
    /// The dense model's metrics.
    pub(crate) has_dense: bool,
    /// The accuracy of guessing.
    pub(crate) has_chance: bool,
    /// The accuracy of always giving the most frequent right answer.
    pub(crate) has_majority: bool,
}

impl HeaderRows {
    /// The cells of the header rows that the table has.
    /// `cells`: of the dense model, of chance, of the majority share.
    pub(crate) fn select_cells(self, cells: [String; 3]) -> Vec<String> {
        let has_rows = [self.has_dense, self.has_chance, self.has_majority];
        cells
            .into_iter()
            .zip(has_rows)
            .filter(|(_, has_row)| *has_row)
            .map(|(cell, _)| cell)
            .collect()
    }
}

/// The columns side by side, separated by two spaces, below their titles and a rule.
pub(crate) fn format_table(columns: &[TextColumn]) -> String {
    let widths: Vec<usize> = columns.iter().map(TextColumn::width).collect();
    // A line of the table; `cell` gives the text of a column, which has this width.
    let line = |cell: &dyn Fn(&TextColumn, usize) -> String| {
        let cells: Vec<String> = columns
            .iter()
            .zip(&widths)
            .map(|(column, &width)| column.pad(&cell(column, width), width))
            .collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    let mut table = line(&|column, _| column.title.clone());
    table.push_str(&line(&|_, width| "─".repeat(width)));
    let row_count = columns.first().map_or(0, |column| column.cells.len());
    for row in 0..row_count {
        table.push_str(&line(&|column, _| column.cells[row].clone()));
    }
    table
}
