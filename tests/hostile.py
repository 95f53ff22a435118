"""Texts that a user may name things by, each of which some formatting would change, refuse or run."""

#: Patients, labels, cell types, features, columns.
TEXTS = [
    "{}", "{patient}", "{{x}}", "{wildcards.patient}", "{input[0]}", "}{", "{0!r:>{1}}", "%s", "%(a)s", "%", "100%",
    "$x$", "$", "a$b$c$", r"$\frac{1}{0}$", r"\$x\$", "\\", r"C:\new\table", r"\N{DASH}", "<b>bold</b>",
    "<script>alert(1)</script>", "&amp;", "a & b", "'", '"', "it's \"so\"", "`x`", "``x", "*x*", "**", "|x|",
    "x_", "_x", "__", "[1]_", ".. image:: x", "{{ 1/0 }}", "{% for %}", "{# x #}", "{{ snakemake }}", "a\nb", "a\tb",
    "a\rb", " x ", "  ", "\x07bell", "x\x1b[31mred", "😀 🧬", "مريض ١", "\u202egnp", "é e\u0301", "張三", "1e3",
    "NA", "nan", "None", "True", "-1", "007", "null", "inf", "", "#x", "~", "*", "?", "a;b", "a|b", "$(touch x)", "--help",
    "=x", "@x", "a,b", "a=b", "-->", "]]>", "x" * 60,
]  # fmt: skip

#: Those that can be the id of a patient: not empty (white space alone is some).
IDS = [text for text in TEXTS if text]
