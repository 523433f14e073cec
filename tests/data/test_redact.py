"""What must not be learnt is found and replaced; what only looks like it stays."""

from __future__ import annotations

import pytest

from smallgpt.data.redact import Redactor

NAMES = {"张小三", "Li", "a.b(c", "我"}


def redacted(text: str) -> str:
    return next(Redactor(True, NAMES).apply([[text]]))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我电话13800001234", "我电话[电话]"),
        ("138-0000-1234或+86 138 0000 1234", "[电话]或[电话]"),
        ("１３８００００１２３４", "[电话]"),
        ("座机010-60001234，(0755)26000000", "座机[电话]，[电话]"),
        ("打400-800-1234", "打[电话]"),
        ("+1 415 555 0100", "[电话]"),
        ("身份证11010519900101002X。", "身份证[身份证]。"),
        ("卡6222020000000000000", "卡[银行卡]"),
        ("6222 0200 0000 0000", "[银行卡]"),
        ("写给a.b+c@mail.example.cn吧", "写给[邮箱]吧"),
        ("我住在北京市东城区长安街88号", "我住在[地址]"),
        ("寄到江苏省南京市玄武区北京东路1号A座302室", "寄到[地址]"),
        ("3号楼5单元101", "[地址]"),
        ("我在北京市东城区上班", "我在[地址]上班"),
        ("张小三说Like是Li写的", "[名字]说Like是[名字]写的"),
        ("a.b(c来了", "[名字]来了"),
        ("我是wxid_ab12cd，加我微信 xiao-qing", "我是[微信号]，加我微信 [微信号]"),
        ("微信号：xiaoqing，vx:xiao_qing8", "微信号：[微信号]，vx:[微信号]"),
        ("我微信qing2024，微信号是：xiaoqing", "我微信[微信号]，微信号是：[微信号]"),
        ("QQ 12345678，qq号是12345", "QQ [QQ号]，qq号是[QQ号]"),
        ("车牌京A12345，粤b·8F6G7，沪AD12345", "车牌[车牌]，[车牌]，[车牌]"),
        ("护照 E12345678，护照号:EA1234567", "护照 [护照]，护照号:[护照]"),
    ],
)
def test_replaced(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("3月12号", "12号见", "1500万", "2024-03-01 12:30:05", "1+1=2", "QQ音乐", "上海市"),
        *("微信支付", "微信Windows版", "新mate40", "新SUV", "QQ2024版", "护照丢了", "Li_2"),
        *("每个城市每个小区都一样", "前面那个路口左转进小区", "我们去超市区别很大", "5楼", "@我"),
    ],
)
def test_left_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_without_replacing_it_counts() -> None:
    redactor = Redactor(False, NAMES)
    text = "张小三 13800001234 13900001234 a@b.cn"
    assert list(redactor.apply([[text, text]])) == [[text, text]]
    assert "4 phone numbers, 2 e-mail addresses" in redactor.line()
    assert "--redact" in redactor.line()
    assert Redactor(False, set()).line() == ""


@pytest.mark.parametrize(
    "text", ["a" * 200_000 + "@", "1-" * 100_000, "市" * 20_000, "路" * 20_000]
)
def test_long_utterances_do_not_hang(text: str) -> None:
    redacted(text)
