import pytest
from calq import Calculator, FormulaError, evaluate, parse, show, tokenize
from calq.evaluate import clamp, mean


def texts(formula):
    return [token.text for token in tokenize(formula)][:-1]


def test_tokens_without_blanks():
    assert texts("a+12*b") == ["a", "+", "12", "*", "b"]


def test_tokens_with_blanks():
    assert texts(" a  <= b ") == ["a", "<=", "b"]


def test_number_with_a_dot():
    assert texts("3.25") == ["3.25"]


def test_second_dot_begins_a_number():
    assert texts("1.2.3") == ["1.2", ".3"]


def test_name_with_digits():
    assert texts("x_1(y2)") == ["x_1", "(", "y2", ")"]


def test_places_of_tokens():
    assert [token.at for token in tokenize("ab + 1")] == [0, 3, 5, 6]


def test_unknown_sign():
    with pytest.raises(FormulaError, match="unexpected '&' at 2"):
        tokenize("a &")


def test_tree_of_a_sum():
    assert parse("1+x") == ("op", "+", ("num", 1.0), ("var", "x"))


def test_sum_is_left_first():
    assert evaluate("10-3-2") == 5


def test_product_before_sum():
    assert evaluate("2+3*4") == 14


def test_parentheses_first():
    assert evaluate("(2+3)*4") == 20


def test_power_is_right_first():
    assert evaluate("2^3^2") == 512


def test_power_before_negation():
    assert evaluate("-2^2") == -4


def test_negative_exponent():
    assert evaluate("2^-1") == 0.5


def test_negation_before_product():
    assert parse("-a*b") == ("op", "*", ("neg", ("var", "a")), ("var", "b"))


def test_double_negation():
    assert evaluate("--3") == 3


def test_quotient():
    assert evaluate("7/2") == 3.5


def test_remainder():
    assert evaluate("7%4") == 3


def test_division_by_zero():
    with pytest.raises(FormulaError, match="division by zero"):
        evaluate("1/(2-2)")


def test_comparisons_are_numbers():
    assert [evaluate(f"2{sign}3") for sign in ("<", "<=", ">", ">=", "==", "!=")] == [1, 1, 0, 0, 0, 1]


def test_comparison_of_equals():
    assert [evaluate(f"3{sign}3") for sign in ("<", "<=", ">", ">=", "==", "!=")] == [0, 1, 0, 1, 1, 0]


def test_comparison_after_sum():
    assert evaluate("1+1==2") == 1


def test_choice():
    assert evaluate("x > 2 ? 10 : 20", x=3) == 10
    assert evaluate("x > 2 ? 10 : 20", x=1) == 20


def test_nested_choice():
    assert evaluate("x < 0 ? 1 : x < 5 ? 2 : 3", x=4) == 2


def test_choice_needs_both_parts():
    with pytest.raises(FormulaError, match="expected ':'"):
        parse("a ? b")


def test_call():
    assert evaluate("max(1, 2+5, 3)") == 7


def test_mean():
    assert mean(1, 2, 6) == 3


def test_clamp():
    assert [clamp(value, 2, 4) for value in (1, 2, 3, 4, 5)] == [2, 2, 3, 4, 4]


def test_clamp_in_a_formula():
    assert evaluate("clamp(x*2, 0, 9)", x=6) == 9


def test_call_without_comma():
    with pytest.raises(FormulaError, match="expected ','"):
        parse("max(1 2)")


def test_unknown_name():
    with pytest.raises(FormulaError, match="unknown name y"):
        evaluate("y+1")


def test_unknown_function():
    with pytest.raises(FormulaError, match="unknown function f"):
        evaluate("f(1)")


def test_missing_operand():
    with pytest.raises(FormulaError, match="expected a value at 2"):
        parse("1+")


def test_text_after_the_end():
    with pytest.raises(FormulaError, match="unexpected '2' at 2"):
        parse("1 2")


def test_missing_parenthesis():
    with pytest.raises(FormulaError, match="at 4"):
        parse("(1+2")


def test_calculator_keeps_names():
    calculator = Calculator()
    calculator.enter("x = 4")
    assert calculator.enter("x^2") == 16


def test_calculator_keeps_the_answer():
    calculator = Calculator()
    calculator.enter("6*7")
    assert calculator.enter("ans/2") == 21


def test_calculator_compares():
    calculator = Calculator()
    calculator.enter("x = 4")
    assert calculator.enter("x == 4") == 1


def test_calculator_counts():
    calculator = Calculator()
    calculator.enter("1")
    calculator.enter("2")
    assert calculator.count == 2


def test_show_leaves_out_needless_parentheses():
    assert show(parse("(a*b)+(c)")) == "a * b + c"


def test_show_keeps_needed_parentheses():
    assert show(parse("(a+b)*c")) == "(a + b) * c"


def test_show_of_differences():
    assert show(parse("a-(b-c)")) == "a - (b - c)"


def test_show_of_powers():
    assert show(parse("(a^b)^c")) == "(a ^ b) ^ c"
    assert show(parse("a^(b^c)")) == "a ^ b ^ c"


def test_show_of_negation():
    assert show(parse("-(a+b)")) == "-(a + b)"


def test_show_of_calls_and_choices():
    assert show(parse("max(1,2)>a?1.5:b")) == "max(1, 2) > a ? 1.5 : b"
