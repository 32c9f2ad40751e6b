//! Templates: what they may hold, and what they become. Pure.
//!
//! The language is Jinja as minijinja speaks it, without what a prompt has no use for and a stranger's template could
//! abuse: no files, no macros, no recursion, no state that outlives a turn of a loop, and limits on size, nesting, steps
//! and output. A string renders as it is; everything else renders as JSON. Nothing is escaped: a model reads text.

use std::io;

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior,
    machinery::{Token, parse, tokenize},
    syntax::SyntaxConfig,
    value::{Serde, Value, ValueKind},
};
use serde_json::Map;

use super::{
    RenderError, Rendered,
    variables::{self, Variable},
};

/// The longest template. Long prompts are tens of kilobytes.
pub const MAX_TEMPLATE_BYTES: usize = 256 * 1024;

/// Operators and names in one `{{ … }}` or `{% … %}`. The parser takes a chain of them apart by recursion.
const MAX_TAG_TOKENS: usize = 400;

/// Opening brackets and filters in all tags of one template. Each may nest one value deeper into another, and a nested value is
/// written and dropped by recursion.
const MAX_NESTING_TOKENS: usize = 1000;

/// `elif`s in one template, which the parser nests into each other.
const MAX_ELIFS: usize = 200;

/// Steps of one rendering, in the engine's fuel: about one for each instruction and for each 64 bytes that are made. Milliseconds.
const MAX_STEPS: u64 = 200_000;

/// Which of the two texts of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    System,
    Template,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Part::System => "system",
            Part::Template => "template",
        }
    }
}

/// Why a text is no template, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}, line {line}: {message}", .part.as_str())]
pub struct TemplateError {
    pub part: Part,
    /// In the text of that part; 1 is the first.
    pub line: usize,
    pub message: String,
}

/// The two texts of a version, ready to render.
#[derive(Debug)]
pub(super) struct Templates {
    engine: Environment<'static>,
    has_system: bool,
    /// Of both texts, the system's first, in the order of the text.
    variables: Vec<Variable>,
}

impl Templates {
    pub(super) fn compile(system: Option<&str>, template: &str) -> Result<Self, TemplateError> {
        let mut engine = engine();
        let mut variables: Vec<Variable> = Vec::new();
        let parts = system.map(|system| (Part::System, system)).into_iter().chain([(Part::Template, template)]);
        for (part, text) in parts {
            for found in check(&engine, part, text)? {
                match variables.iter_mut().find(|known| known.name == found.name) {
                    Some(known) => known.required |= found.required,
                    None => variables.push(found),
                }
            }
            engine
                .add_template_owned(part.as_str(), text.to_owned())
                .map_err(|error| TemplateError::new(part, &error))?;
        }
        Ok(Self { engine, has_system: system.is_some(), variables })
    }

    pub(super) fn variables(&self) -> &[Variable] {
        &self.variables
    }

    pub(super) fn render(
        &self,
        given: &Map<String, serde_json::Value>,
        max_bytes: usize,
    ) -> Result<Rendered, RenderError> {
        let missing = self.variables.iter().filter(|variable| variable.required && !given.contains_key(&variable.name));
        let missing: Vec<String> = missing.map(|variable| variable.name.clone()).collect();
        if !missing.is_empty() {
            return Err(RenderError::Missing(missing));
        }
        // Only what is used is converted.
        let context = Value::from_pairs(
            self.variables
                .iter()
                .filter_map(|variable| Some((variable.name.as_str(), Value::from(Serde(given.get(&variable.name)?))))),
        );
        let system = match self.has_system {
            true => Some(self.render_part(Part::System, context.clone(), max_bytes, max_bytes)?),
            false => None,
        };
        let left = max_bytes.saturating_sub(system.as_ref().map_or(0, String::len));
        let user = self.render_part(Part::Template, context, left, max_bytes)?;
        Ok(Rendered { system, user })
    }

    /// Renders one text into at most `left` bytes; `max_bytes` is for the sentence that says it was too much.
    fn render_part(&self, part: Part, context: Value, left: usize, max_bytes: usize) -> Result<String, RenderError> {
        let mut output = Bounded { bytes: Vec::new(), left, full: false };
        let rendered = self
            .engine
            .get_template(part.as_str())
            .and_then(|template| template.render_captured_to(context, &mut output).map(|_| ()));
        if output.full {
            return Err(RenderError::TooLarge { max_bytes });
        }
        if let Err(error) = rendered {
            return Err(RenderError::Failed(sentence(part, &error)));
        }
        String::from_utf8(output.bytes)
            .map_err(|_| RenderError::Failed(format!("{}: the rendered text is not UTF-8", part.as_str())))
    }
}

impl TemplateError {
    fn new(part: Part, error: &Error) -> Self {
        Self::at(part, error.line().unwrap_or(1), one_line(error))
    }

    fn at(part: Part, line: usize, message: String) -> Self {
        Self { part, line, message }
    }
}

fn engine() -> Environment<'static> {
    let mut engine = Environment::new();
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_auto_escape_callback(|_| AutoEscape::None);
    engine.set_fuel(Some(MAX_STEPS));
    // For loops nest by the text; nothing else recurses.
    engine.set_recursion_limit(50);
    // It would carry values from one turn of a loop to the next, nested ever deeper.
    engine.remove_global("namespace");
    // It shows all variables.
    engine.remove_global("debug");
    engine.set_formatter(|output, state, value| {
        match value.kind() {
            ValueKind::Undefined => return Err(Error::from(ErrorKind::UndefinedError)),
            ValueKind::String => output.write_str(value.as_str().unwrap_or_default())?,
            ValueKind::Number if value.is_integer() => write!(output, "{value}")?,
            // 1e300 has three hundred zeros otherwise.
            ValueKind::Number => match f64::try_from(value.clone()) {
                Ok(number) if number.is_finite() => output.write_str(&json(&number)?)?,
                _ => write!(output, "{value}")?,
            },
            ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid => {
                minijinja::escape_formatter(output, state, value)?
            }
            _ => output.write_str(&json(value)?)?,
        }
        Ok(())
    });
    engine
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "the value cannot be written as JSON").with_source(error)
    })
}

/// Refuses what is too large or names what does not exist, and finds the variables.
fn check(engine: &Environment<'_>, part: Part, text: &str) -> Result<Vec<Variable>, TemplateError> {
    if text.len() > MAX_TEMPLATE_BYTES {
        return Err(TemplateError::at(part, 1, format!("the text is larger than {MAX_TEMPLATE_BYTES} bytes")));
    }
    check_nesting(part, text)?;
    let tree = parse(text, part.as_str(), SyntaxConfig::default()).map_err(|error| TemplateError::new(part, &error))?;
    if let Some(line) = recursive_loop(&tree) {
        return Err(TemplateError::at(part, line, "a prompt has no recursive loops".to_owned()));
    }
    let names = variables::names(&tree);
    let mut state = engine.empty_state();
    let unknown = |kind: &str, name: &str, span: minijinja::machinery::Span| {
        Err(TemplateError::at(part, span.start_line.into(), format!("there is no {kind} named '{name}'")))
    };
    for (name, span) in &names.filters {
        let tried = state.apply_filter(name, &[]);
        if tried.is_err_and(|error| error.kind() == ErrorKind::UnknownFilter) {
            return unknown("filter", name, *span);
        }
    }
    for (name, span) in &names.tests {
        let tried = state.perform_test(name, &[]);
        if tried.is_err_and(|error| error.kind() == ErrorKind::UnknownTest) {
            return unknown("test", name, *span);
        }
    }
    for (name, span) in &names.functions {
        if !engine.globals().any(|(global, _)| global == name) {
            return unknown("function", name, *span);
        }
    }
    Ok(names.variables)
}

/// Counts what makes the parser or a value nest, before anything recurses over it.
fn check_nesting(part: Part, text: &str) -> Result<(), TemplateError> {
    let (mut in_tag, mut nesting, mut elifs) = (0, 0, 0);
    for token in tokenize(text, false, SyntaxConfig::default()) {
        // The parser says better what is wrong.
        let Ok((token, span)) = token else { return Ok(()) };
        match token {
            Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => in_tag = 0,
            Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) => {}
            Token::Comma | Token::Colon => {}
            Token::Ident("elif") => elifs += 1,
            Token::BracketOpen | Token::BraceOpen | Token::ParenOpen | Token::Pipe => {
                nesting += 1;
                in_tag += 1;
            }
            _ => in_tag += 1,
        }
        let excess = if in_tag > MAX_TAG_TOKENS {
            "this expression is too long"
        } else if nesting > MAX_NESTING_TOKENS {
            "the text has too many brackets and filters in its tags"
        } else if elifs > MAX_ELIFS {
            "the text has too many elifs"
        } else {
            continue;
        };
        return Err(TemplateError::at(part, span.start_line.into(), excess.to_owned()));
    }
    Ok(())
}

/// The line of a `{% for … recursive %}`.
fn recursive_loop(statement: &minijinja::machinery::ast::Stmt<'_>) -> Option<usize> {
    use minijinja::machinery::ast::Stmt;
    let inside = |bodies: &[&[Stmt<'_>]]| bodies.iter().copied().flatten().find_map(recursive_loop);
    match statement {
        Stmt::ForLoop(each) if each.recursive => Some(each.span().start_line.into()),
        Stmt::ForLoop(each) => inside(&[&each.body, &each.else_body]),
        Stmt::Template(template) => inside(&[&template.children]),
        Stmt::IfCond(condition) => inside(&[&condition.true_body, &condition.false_body]),
        Stmt::WithBlock(with) => inside(&[&with.body]),
        Stmt::SetBlock(set) => inside(&[&set.body]),
        Stmt::AutoEscape(block) => inside(&[&block.body]),
        Stmt::FilterBlock(block) => inside(&[&block.body]),
        Stmt::EmitExpr(_) | Stmt::EmitRaw(_) | Stmt::Set(_) | Stmt::Do(_) => None,
    }
}

/// One sentence for the caller whose values a template could not use.
fn sentence(part: Part, error: &Error) -> String {
    let place = match error.line() {
        Some(line) => format!("{}, line {line}", part.as_str()),
        None => part.as_str().to_owned(),
    };
    match error.kind() {
        ErrorKind::OutOfFuel => format!("{}: rendering takes too many steps", part.as_str()),
        ErrorKind::UndefinedError => format!("{place}: a value that the text uses is not defined"),
        _ => format!("{place}: {}", one_line(error)),
    }
}

/// The engine's words, without its place and its second lines.
fn one_line(error: &Error) -> String {
    let words = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    words.lines().next().unwrap_or_default().to_owned()
}

/// Takes bytes up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    left: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.left.checked_sub(bytes.len()) {
            Some(left) => {
                self.left = left;
                self.bytes.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            None => {
                self.full = true;
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
