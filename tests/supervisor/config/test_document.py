"""Lines of nodes and of syntax errors."""

import re

import ckdl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.config.document import Node, read_document
from supervisor.config.errors import ConfigError, Problem
from supervisor.config.scan import scan


def lines_of(text: str) -> dict[str, int | None]:
    """Map each node's name to its line. Names have to differ."""
    found: dict[str, int | None] = {}

    def walk(nodes: tuple[Node, ...]) -> None:
        for node in nodes:
            assert node.name not in found
            found[node.name] = node.line
            walk(node.children)

    walk(read_document(text, "test.kdl").nodes)
    return found


def problem_of(text: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        read_document(text, "test.kdl")
    [problem] = caught.value.problems
    assert problem.file == "test.kdl"
    return problem


# Each node is called `lN` after the line that it stands on.
CORPUS = [
    "l1",
    "\n\nl3\n",
    "l1; l01; l001\nl2",
    "l1 {\n l2 {\n  l3\n }\n l5\n}\nl7",
    "l1 { l01; l001 { l0001; }; }\nl2",
    "// x\n// l2 {\nl3 // { l3\nl4",
    "/* l1\n { /* nested \n */ } */ l3\nl4 /*\n*/ 1\nl6",
    '/* " */ l1 "/*" \'\nl2 "*/"',
    'l1 "// no comment" "{" "}"\nl2 "a\\"b\\\\"\nl3',
    'l1 "two\nlines {" true\nl3',
    'l1 "es\\\n   caped" #true\nl3',
    'l1 """\n  l2 {\n  " "" \\""" \n  """\nl5 #true',
    'l1 #"""\n  x "\n  "# """\n  """#\nl5 #true',
    'l1 #"a " {"#\nl2 ##"b "# c"##\nl3 #""#\nl4',
    'l1 r"a \\"\nl2 r#"b " \n{"#\nl4 true',
    '"l1" 1\nr"l2" 2\nr#"l3"# {\n  "l4"\n}',
    '#"l1"# #true\n"l2"',
    "/- x {\n y {\n }\n}\nl5",
    "/-\nx 1\nl3",
    "/-/-x\nl2",
    "/- x { y; }; l1\nl2",
    "l1 /- 1 2 {\n l2\n}",
    "l1 /-\n 1 2\nl3",
    "l1 /-k=1 /- k = 2 {\n l2\n}\nl4",
    "l1 /-{\n x\n} {\n l4\n} /-{\n y\n}\nl8",
    "l1 /- // z\n {\n x\n}\nl5",
    "l1 \\\n  1 \\ // x {\n  2 \\\n  {\n l5\n}\nl7",
    "l1 \\\n\n l3",
    "(t)l1 (u8)1\n( t ) l2 k=(v)2 {\n (w)l3\n}",
    '("t {")l1\nl2',
    "l1 a=b c = d\nl2 1",
    "l1\r\nl2 {\r\n l3\r\n}\r\nl5",
    "\ufeffl1\nl2",
    "l1\rl2 {\r l3\r}\r\nl5\rl6",
    "l1\x85l2\u2028l3\u2029l4",
    "l1 // x\rl2\r// y\rl4",
    "l1\f\nl2 1\u2003 2\nl3",
    "l1 - -1 +1 1.5e3 0xff 1_000\n- 1\nl3 a/**/b",
]


@pytest.mark.parametrize("text", CORPUS)
def test_document_gives_each_node_its_line(text: str) -> None:
    found = lines_of(text)
    found.pop("-", None)

    assert found
    assert found == {name: int(name[1:]) for name in found}


spaces = st.sampled_from([" ", "\t", "  ", ' /* { " } */ ', " /* a\n /* b */\n */ ", " \\\n ", " \\ // {\n"])
words = st.sampled_from(
    [
        "1",
        "-2.5",
        '""',
        '"x"',
        '"{"',
        '"}"',
        '"\\""',
        '"// x"',
        '"/*"',
        "k=1",
        "/-1",
        '/- "x {"',
        "/-k=2",
        "(u8)1",
    ]
)
kdl1_words = words | st.sampled_from(["true", "null", 'r"\\"', 'r#" " {"#', '"two\nlines }"', 'k=r"}"'])
kdl2_words = words | st.sampled_from(
    [
        "#true",
        "#null",
        "bare",
        'k = "}"',
        '#" " {"#',
        '##""#"##',
        '"""\n  a " }\n  """',
        '#"""\n  """ }\n  """#',
        '"x\\\n y"',
    ]
)
ends = st.sampled_from(
    ["\n", ";", "\n\n", ' // { "\n', "\r\n", " ;; ", "\n/- x { y; }\n", "\n/-z 1 {\n}\n", "\n/*\n}*/"]
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Draw a valid document with a marker `@` in front of the name of each node that counts."""
    values = draw(st.sampled_from([kdl1_words, kdl2_words]))

    def nodes(depth: int) -> str:
        text = draw(ends) if draw(st.booleans()) else ""
        for _ in range(draw(st.integers(0, 3))):
            quote = draw(st.sampled_from(["", "", '"']))
            text += f"{quote}@{quote}" + "".join(draw(spaces) + value for value in draw(st.lists(values, max_size=3)))
            if depth < 3 and draw(st.booleans()):
                text += draw(st.sampled_from(["", " /-{\n x }"])) + " {" + nodes(depth + 1) + "}"
            text += draw(ends)
        return text

    return nodes(0)


@settings(max_examples=150, deadline=None)
@given(documents())
def test_document_gives_each_node_its_line_when_it_is_built_at_random(template: str) -> None:
    numbers = iter(range(10**6))
    text = re.sub("@", lambda _: f"n{next(numbers)}", template)
    expected = {m[0]: text.count("\n", 0, m.start()) + 1 for m in re.finditer(r"\bn\d+", text)}

    assert lines_of(text) == expected


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text('a1 \n{};/-*"#\\()=r', max_size=40))
def test_document_is_read_or_refused_when_given_any_text(text: str) -> None:
    try:
        document = read_document(text, "test.kdl")
    except ConfigError as error:
        [problem] = error.problems
        assert problem.line is None or 1 <= problem.line <= len(re.findall("\r\n|[\n\r\x85\u2028\u2029]", text)) + 1
    else:
        assert [node.name for node in document.nodes] == [node.name for node in ckdl.parse(text).nodes]


@settings(max_examples=150, deadline=None)
@given(documents(), st.sampled_from([" a#b c", ' "x"y', " [", " 10s"]), st.data())
def test_document_names_the_line_of_a_syntax_error_when_one_is_put_into_it(
    template: str, junk: str, data: st.DataObject
) -> None:
    """The junk goes behind the name of one node, whose line is then the one to blame."""
    places = [found.end() for found in re.finditer('"@"|@', template)]
    if not places:
        return
    place = data.draw(st.sampled_from(places))
    text = template[:place] + junk + template[place:]

    assert problem_of(text).line == text.count("\n", 0, place) + 1


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("a\nb {\nc\n", 2, "this block is never closed", None),
        ("a\nb {\n}\n}\nc", 4, "this brace closes nothing", None),
        ("a\n{\nb\n}", 2, "a block needs a name in front of it", None),
        ("a\n/* b\nc", 2, "this comment is never closed", None),
        ('a\nb r#"x"\nc', 2, "this string is never closed", None),
        ('a\nb """\nc', 2, "this string is never closed", None),
        ('a\nb "x\nc', 2, "this string is never closed", None),
        ('a\nb "x\nc "y"\nd', 2, "a string that begins here runs over", "is its closing quote missing?"),
        ('a "m\nn" true\nb "x\nc 1\nd "y" "z"\n', 3, "a string that begins here runs over", "is its closing quote"),
        ('a "x\nb "y" {\n c\n}', 1, "a string that begins here runs over", "is its closing quote missing?"),
        ('a b#c "x\n" {\n c\n}', 1, "bare identifier", "put text in double quotes"),
        ("a true\nb 1\nc #true\n", 3, "bare identifier", "KDL 1 writes true and KDL 2 writes #true"),
        ("a #true\nb 1\nc true\n", 3, "bare identifier", "KDL 1 writes true and KDL 2 writes #true"),
        ("a {\n t 10s\n}", 2, "error parsing property", 'put it in double quotes: "10s"'),
        ("a {\n p /run/x\n}", 2, "this is not KDL", "put text in double quotes"),
        ("a\nb{\n}\n", 2, "this is not KDL", "a space in front of each value and brace"),
        ("a\nb \x00\n", 2, "this is not KDL", None),
        ('a\nb "\\u{D800}"\n', 2, "a character that is not allowed", None),
        ("a\nb 1 (", 2, "unexpected token, expected type", None),
        ("a\n/-", 2, "", None),
    ],
)
def test_syntax_error_has_its_line_and_a_hint(text: str, line: int, message: str, hint: str | None) -> None:
    problem = problem_of(text)

    assert problem.line == line
    assert f"syntax error: {message}" in problem.message
    assert hint is None or hint in (problem.hint or "")


def test_syntax_error_repeats_nothing_of_a_file_that_may_hold_secrets() -> None:
    assert "hunter" not in str(problem_of("password hunter#2\nother [hunter3] hunter4s"))


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("\na 0x" + "f" * 1_000_000, 2, "more than 512 characters"),
        ("\na " + "1_" * 400_000 + "1", 2, "more than 512 characters"),
        ("\n" + "a {" * 65 + "}" * 65, 2, "nested more than 64 deep"),
        ("\n" + "a {\n" * 300_000, 66, "nested more than 64 deep"),
        ("\n/-" + "a {" * 300_000, 2, "nested more than 64 deep"),
        ("a\n" * 50_001, 50_001, "more than 50,000 nodes"),
    ],
)
def test_document_is_refused_before_parsing_when_that_would_cost_too_much(text: str, line: int, message: str) -> None:
    problem = problem_of(text)

    assert problem.line == line
    assert message in problem.message


def test_document_is_read_when_it_is_nested_as_deep_as_allowed() -> None:
    [node] = read_document("a {" * 64 + "}" * 64, "test.kdl").nodes
    depth = 1
    while node.children:
        [node] = node.children
        depth += 1
    assert depth == 64


@pytest.mark.parametrize(
    "text",
    ["/*" * 50_000, "(" * 100_000, "/-" * 50_000, '"\\' * 50_000, "#" * 500 + '"' * 90_000, "\\\n" * 50_000],
)
def test_scan_ends_when_given_very_many_characters_of_one_kind(text: str) -> None:
    assert len(scan(text).nodes) <= 1


def test_document_gives_nodes_the_line_of_their_parent_when_the_parser_sees_others() -> None:
    """Ckdl lets this slashdash reach over the semicolon to the next node, the scanner does not."""
    found = lines_of("l1\nl2 {\n a /-; gone\n b {\n c\n }\n}\nl8")

    assert found == {"l1": 1, "l2": 2, "a": 2, "b": 2, "c": 2, "l8": 8}


def test_document_keeps_type_annotations_apart_from_values() -> None:
    [node] = read_document("(t)a (u8)1 k=(v)2", "test.kdl").nodes

    assert (node.annotation, node.args, node.properties) == ("t", (1,), {"k": 2})
    assert node.annotated == ("u8", "v")


@pytest.mark.parametrize("end", ["\x85", "\f", "\u2028", "\u2029", "\r"], ids=ascii)
def test_a_comment_that_an_editor_does_not_end_is_refused(end: str) -> None:
    """KDL ends it there, so that what follows would be in effect."""
    problem = problem_of(f"a 1\n// off: {end}b 2\nc 3")

    assert problem.line == 2
    assert f"the comment ends at U+{ord(end):04X}" in problem.message
