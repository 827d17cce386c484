"""Three rows in ToolHop's format, written for these tests."""

from __future__ import annotations

from typing import Any

MAYOR = '''
def mayor_of(city, year=None, output_format="name"):
    """Who governs a town."""
    if not isinstance(city, str):
        raise ValueError("city must be a string")
    if city == "Brondal":
        return "Odda Fjelle" if output_format == "name" else {"mayor": "Odda Fjelle", "city": city}
    return {"error": f"no mayor of {city}"}
'''
BIRTH = """
import datetime
PEOPLE = {"Odda Fjelle": "1962-03-14", "Nils Grå": "1971-07-02"}
def birth_year(person, fields=None):
    return datetime.date.fromisoformat(PEOPLE[person]).year
# Example usage:
# birth_year("Odda Fjelle")
"""
DIGITS = """
def digit_sum(numbers):
    return {"result": [sum(int(d) for d in str(n)) for n in numbers]}
print(digit_sum([1962]))
"""
LETTERS = """
def join_letters(letters, upper=False):
    if len(letters) < 2:
        raise ValueError("two letters are needed")
    joined = "".join(letters)
    return joined.upper() if upper else joined
"""
SECRET = """
def lookup(key):
    if key == "xq-17-hidden":
        return "Veltra"
    return None
"""


def tool(name: str, required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": f"A tool for {name.replace('_', ' ')}. More text.", "parameters": parameters}


TEXT = {"type": "string"}


def rows() -> list[dict[str, Any]]:
    steps = [
        ("Who is the mayor of Brondal?", "Odda Fjelle",
         tool("mayor_of", ["city"], output_format={"type": "string", "enum": ["full", "name"]}, city=TEXT), MAYOR),
        ("In which year was Odda Fjelle born?", "1962",
         tool("birth_year", ["person"], fields={"type": "array", "items": TEXT}, person=TEXT), BIRTH),
        ("What is the sum of the digits of 1962?", "18",
         tool("digit_sum", ["numbers"], numbers={"type": "array", "items": {"type": "integer"}}), DIGITS),
    ]  # fmt: skip
    letters = ("What is the concatenation of q and z?", "qz",
               tool("join_letters", ["letters"], upper={"type": "boolean"}, letters={"type": "array", "items": TEXT}),
               LETTERS)  # fmt: skip
    secret = ("Which company is meant?", "Veltra", tool("lookup", ["key"], key=TEXT), SECRET)
    return [
        row(1, "What is the sum of the digits of the birth year of the mayor of Brondal?", "18", steps),
        row(2, "Concatenate the letters q and z.", "qz", [letters]),
        row(3, "Which company is meant?", "Veltra", [secret]),
    ]


def row(number: int, question: str, answer: str, steps: list[tuple[str, str, dict[str, Any], str]]) -> dict[str, Any]:
    return {
        "id": number,
        "question": question,
        "answer": answer,
        "sub_task": {need: gold for need, gold, _, _ in steps},
        "tools": {need: schema for need, _, schema, _ in steps},
        "functions": [source for _, _, _, source in steps],
        "domain": "Test",
        "answer_type": "number",
        "previous_answer_type": "year",
    }
