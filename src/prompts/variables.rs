//! Which variables a template uses, and which of them it cannot do without. Reads the template's syntax tree; pure.
//!
//! A variable is **required** unless every use of it is guarded: directly by a default (`{{ x | default("…") }}`), by the
//! question itself (`x is defined`), or by standing where that question was answered with yes (`{% if x is defined %}`,
//! its `else` for `is not defined`, the right side of `and`). `{% if x %}` is no guard: a name that a caller mistyped
//! would silently drop a part of the prompt.

use std::collections::BTreeSet;

use minijinja::machinery::{
    Span,
    ast::{self, BinOpKind, CallArg, Expr, Stmt, UnaryOpKind},
};
use serde::{Deserialize, Serialize};

/// A variable that a caller gives, or may give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    pub name: String,
    /// Without it there is no prompt.
    pub required: bool,
}

/// What the walk met; the caller knows which names exist.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// In the order of the text.
    pub variables: Vec<Variable>,
    pub filters: Vec<(String, Span)>,
    pub tests: Vec<(String, Span)>,
    pub functions: Vec<(String, Span)>,
}

/// Collects the names of a parsed template.
pub(super) fn names(template: &Stmt<'_>) -> Names {
    let mut walk = Walk { names: Names::default(), scopes: vec![Scope::default()] };
    walk.statement(template);
    walk.names
}

#[derive(Default)]
struct Scope<'a> {
    /// Set by the template: these are not the caller's.
    assigned: BTreeSet<&'a str>,
    /// The caller's, and there for sure.
    defined: BTreeSet<&'a str>,
}

struct Walk<'a> {
    names: Names,
    /// Innermost last.
    scopes: Vec<Scope<'a>>,
}

impl<'a> Walk<'a> {
    fn statement(&mut self, statement: &Stmt<'a>) {
        match statement {
            Stmt::Template(template) => self.body(&template.children),
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::EmitRaw(_) => {}
            Stmt::ForLoop(each) => {
                self.expression(&each.iter);
                self.inside(BTreeSet::new(), |walk| {
                    walk.assign(&each.target);
                    walk.assign_name("loop");
                    each.filter_expr.iter().for_each(|filter| walk.expression(filter));
                    walk.body(&each.body);
                });
                self.inside(BTreeSet::new(), |walk| walk.body(&each.else_body));
            }
            Stmt::IfCond(condition) => {
                self.expression(&condition.expr);
                let yes = self.inside(known_if(&condition.expr, true), |walk| walk.body(&condition.true_body));
                let no = self.inside(known_if(&condition.expr, false), |walk| walk.body(&condition.false_body));
                // The template's own names outlive its branches. One that a single branch sets is the caller's to give in the other
                // case, but whether it must be cannot be said from here.
                if let Some(scope) = self.scopes.last_mut() {
                    scope.defined.extend(yes.assigned.symmetric_difference(&no.assigned));
                    scope.assigned.extend(yes.assigned.intersection(&no.assigned));
                }
            }
            Stmt::WithBlock(with) => {
                self.inside(BTreeSet::new(), |walk| {
                    for (target, value) in &with.assignments {
                        walk.expression(value);
                        walk.assign(target);
                    }
                    walk.body(&with.body);
                });
            }
            Stmt::Set(set) => {
                self.expression(&set.expr);
                self.assign(&set.target);
            }
            Stmt::SetBlock(set) => {
                self.inside(BTreeSet::new(), |walk| walk.body(&set.body));
                set.filter.iter().for_each(|filter| self.expression(filter));
                self.assign(&set.target);
            }
            Stmt::AutoEscape(block) => {
                self.expression(&block.enabled);
                self.inside(BTreeSet::new(), |walk| walk.body(&block.body));
            }
            Stmt::FilterBlock(block) => {
                self.expression(&block.filter);
                self.inside(BTreeSet::new(), |walk| walk.body(&block.body));
            }
            Stmt::Do(statement) => self.call(&statement.call, statement.call.span()),
        }
    }

    fn body(&mut self, statements: &[Stmt<'a>]) {
        statements.iter().for_each(|statement| self.statement(statement));
    }

    fn expression(&mut self, expression: &Expr<'a>) {
        match expression {
            Expr::Var(variable) => self.used(variable.id, false),
            Expr::Const(_) => {}
            Expr::Slice(slice) => {
                self.expression(&slice.expr);
                [&slice.start, &slice.stop, &slice.step].into_iter().flatten().for_each(|part| self.expression(part));
            }
            Expr::UnaryOp(operation) => self.expression(&operation.expr),
            Expr::BinOp(operation) => {
                self.expression(&operation.left);
                let known = match operation.op {
                    BinOpKind::ScAnd => known_if(&operation.left, true),
                    BinOpKind::ScOr => known_if(&operation.left, false),
                    _ => BTreeSet::new(),
                };
                self.inside(known, |walk| walk.expression(&operation.right));
            }
            Expr::Compare(comparison) => {
                self.expression(&comparison.expr);
                comparison.ops.iter().for_each(|op| self.expression(&op.expr));
            }
            Expr::IfExpr(choice) => {
                // `yes if question else no`: the text's order, though the question comes first.
                self.inside(known_if(&choice.test_expr, true), |walk| walk.expression(&choice.true_expr));
                self.expression(&choice.test_expr);
                self.inside(known_if(&choice.test_expr, false), |walk| {
                    choice.false_expr.iter().for_each(|no| walk.expression(no));
                });
            }
            Expr::Filter(filter) => {
                self.names.filters.push((filter.name.to_owned(), filter.span()));
                match &filter.expr {
                    Some(Expr::Var(variable)) if matches!(filter.name, "default" | "d") => self.used(variable.id, true),
                    Some(value) => self.expression(value),
                    None => {}
                }
                self.arguments(&filter.args);
            }
            Expr::Test(test) => {
                self.names.tests.push((test.name.to_owned(), test.span()));
                match &test.expr {
                    Expr::Var(variable) if matches!(test.name, "defined" | "undefined") => self.used(variable.id, true),
                    value => self.expression(value),
                }
                self.arguments(&test.args);
            }
            Expr::GetAttr(attribute) => self.expression(&attribute.expr),
            Expr::GetItem(item) => {
                self.expression(&item.expr);
                self.expression(&item.subscript_expr);
            }
            Expr::Call(call) => self.call(call, call.span()),
            Expr::List(list) => list.items.iter().for_each(|item| self.expression(item)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.expression(item)),
            Expr::Map(map) => map.keys.iter().zip(&map.values).for_each(|(key, value)| {
                self.expression(key);
                self.expression(value);
            }),
        }
    }

    fn call(&mut self, call: &ast::Call<'a>, span: Span) {
        match &call.expr {
            Expr::Var(function) => self.names.functions.push((function.id.to_owned(), span)),
            value => self.expression(value),
        }
        self.arguments(&call.args);
    }

    fn arguments(&mut self, arguments: &[CallArg<'a>]) {
        for argument in arguments {
            match argument {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => self.expression(value),
            }
        }
    }

    fn used(&mut self, name: &'a str, guarded: bool) {
        if self.scopes.iter().any(|scope| scope.assigned.contains(name)) {
            return;
        }
        let required = !guarded && !self.scopes.iter().any(|scope| scope.defined.contains(name));
        match self.names.variables.iter_mut().find(|variable| variable.name == name) {
            Some(variable) => variable.required |= required,
            None => self.names.variables.push(Variable { name: name.to_owned(), required }),
        }
    }

    fn assign(&mut self, target: &Expr<'a>) {
        match target {
            Expr::Var(variable) => self.assign_name(variable.id),
            Expr::List(list) => list.items.iter().for_each(|item| self.assign(item)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.assign(item)),
            other => self.expression(other),
        }
    }

    fn assign_name(&mut self, name: &'a str) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.assigned.insert(name);
        }
    }

    /// Walks through something with a scope of its own, and gives that scope back.
    fn inside(&mut self, defined: BTreeSet<&'a str>, walk: impl FnOnce(&mut Self)) -> Scope<'a> {
        self.scopes.push(Scope { assigned: BTreeSet::new(), defined });
        walk(self);
        self.scopes.pop().unwrap_or_default()
    }
}

/// The names that are there for sure when `question` is answered with `answer`.
fn known_if<'a>(question: &Expr<'a>, answer: bool) -> BTreeSet<&'a str> {
    match question {
        Expr::Test(test) => match (&test.expr, test.name) {
            (Expr::Var(variable), "defined") if answer => BTreeSet::from([variable.id]),
            (Expr::Var(variable), "undefined") if !answer => BTreeSet::from([variable.id]),
            _ => BTreeSet::new(),
        },
        Expr::UnaryOp(operation) if matches!(operation.op, UnaryOpKind::Not) => known_if(&operation.expr, !answer),
        Expr::BinOp(operation) => {
            let both = || (known_if(&operation.left, answer), known_if(&operation.right, answer));
            match (operation.op, answer) {
                (BinOpKind::ScAnd, true) | (BinOpKind::ScOr, false) => {
                    let (left, right) = both();
                    left.union(&right).copied().collect()
                }
                (BinOpKind::ScAnd, false) | (BinOpKind::ScOr, true) => {
                    let (left, right) = both();
                    left.intersection(&right).copied().collect()
                }
                _ => BTreeSet::new(),
            }
        }
        _ => BTreeSet::new(),
    }
}
