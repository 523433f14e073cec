"""What the chat says on a terminal, in English and Chinese."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from smallgpt.chat.chatbot import Source


@dataclass(frozen=True)
class Words:
    """The sentences of one language; `{}` stands for what differs each time."""

    welcome: str
    source: str
    card: str
    million: str
    nothing_typed: str
    unknown: str
    forgotten: str
    joined: str
    left_out: str
    usage: str
    comma: str
    unknown_key: str
    wrong_value: str
    limits: Mapping[str, str]
    no_path: str
    saved: str
    loaded: str
    exists: str
    unwritable: str
    unreadable: str
    no_file: str
    no_json: str
    no_conversation: str
    nothing_said: str
    always_the_same: str
    same_again: str
    you: str
    model: str
    help: str

    def describe(self, source: Source) -> str:
        """The line that says which model talks."""
        size, divisor = f"{source.parameters:,}", 1_000_000 if self is ENGLISH else 10_000
        if source.parameters >= divisor:
            size = self.million.format(source.parameters / divisor)
        device = source.device.replace("cpu", "CPU")
        return self.source.format(source.path, size, source.precision, device)


ENGLISH = Words(
    welcome="Chat: type and press Enter; exit leaves, flush forgets, /help explains.",
    source="Model: {} ({} parameters, {}, on {})",
    card="It makes things up, and is no help in a crisis: read {}",
    million="{:,.1f} million",
    nothing_typed="(nothing typed; /help explains)",
    unknown="(unknown command {}; /help lists the commands)",
    forgotten="(conversation forgotten)",
    joined="(the {} lines were taken as one message)",
    left_out="(too long for the model: the first {:,} characters were left out)",
    usage="(usage: {})",
    comma=", ",
    unknown_key="(unknown key {}; can be set: {})",
    wrong_value="({error})",
    limits={},
    no_path="({})",
    saved="(conversation saved: {})",
    loaded="(conversation loaded: {}, {} messages; /history shows them)",
    exists="({} is there already; name another file, or delete it)",
    unwritable="({} cannot be written: {})",
    unreadable="({} cannot be read as a conversation: {})",
    no_file="it is not a file of at most 10 MB",
    no_json="it is not JSON",
    no_conversation="{}",
    nothing_said="(nothing has been said yet)",
    always_the_same="(temperature is 0: the reply is always the same)",
    same_again="(the same reply; a higher temperature gives others)",
    you="you: ",
    model="model: ",
    help="""\
Type what you want to say and press Enter.
  exit, quit, 退出, /exit, /bye  leave (or Ctrl-D)
  flush, /flush                  forget the conversation and begin anew
  /retry                         draw the last reply anew
  /set                           show how replies are drawn
  /set temperature 0.8           change it
  /history                       show the conversation
  /save FILE                     write the conversation to a new JSON file
  /load FILE                     go on with a conversation that was saved
  /help                          this text
Ctrl-C stops a reply; at the prompt it clears the line. Several lines pasted are one message.
There is no system prompt: the model knows only what was said in the conversation.""",
)
CHINESE = Words(
    welcome="输入内容后按回车发送；输入 exit 退出，flush 清空对话，/help 查看帮助。",
    source="模型：{}（{}参数，{}，在 {} 上运行）",
    card="它会乱说，也不能在危急时刻帮助你（心理援助热线 12356），详见 {}",
    million="{:,.0f} 万",
    nothing_typed="（没有输入内容；/help 查看帮助）",
    unknown="（没有 {} 这个命令；/help 列出所有命令）",
    forgotten="（对话已清空）",
    joined="（粘贴的 {} 行作为一条消息发送）",
    left_out="（消息太长，模型看不到开头的 {:,} 个字）",
    usage="（用法：{}）",
    comma="、",
    unknown_key="（没有 {} 这个参数；可以修改：{}）",
    wrong_value="（{key} 不能设为 {value}；应为{limit}）",
    limits={
        "temperature": "不小于 0 的数",
        "top_k": "不小于 0 的整数",
        "top_p": "大于 0、不大于 1 的数",
        "repetition_penalty": "0.001 到 1000 之间的数",
        "frequency_penalty": "-2 到 2 之间的数",
        "presence_penalty": "-2 到 2 之间的数",
        "no_repeat_ngram": "不小于 0 的整数",
        "max_repeats": "不小于 0 的整数",
        "max_new_tokens": "不小于 1 的整数",
        "best_of": "1 到 64 之间的整数",
        "mmi_weight": "0 到 1 之间的数",
    },
    no_path="（文件名太长，或不是有效的路径）",
    saved="（对话已保存：{}）",
    loaded="（已载入 {} 中的 {} 条消息；/history 查看）",
    exists="（{} 已经存在；换一个文件名，或先删除它）",
    unwritable="（无法写入 {}：{}）",
    unreadable="（无法从 {} 读取对话：{}）",
    no_file="不是文件，或超过 10 MB",
    no_json="不是 JSON",
    no_conversation="内容不是用户和模型轮流说的对话",
    nothing_said="（还没有对话）",
    always_the_same="（temperature 为 0，回复总是一样）",
    same_again="（回复和上次一样；调高 temperature 可以得到不同的回复）",
    you="你：",
    model="模型：",
    help="""\
输入内容后按回车发送。
  退出、exit、quit、/exit、/bye  退出（或按 Ctrl-D）
  flush、/flush                  清空对话，重新开始
  /retry                         重新生成上一条回复
  /set                           查看生成回复的参数
  /set temperature 0.8           修改参数
  /history                       查看对话
  /save 文件                     把对话保存为新的 JSON 文件
  /load 文件                     载入保存的对话，接着聊
  /help                          显示本帮助
回复时按 Ctrl-C 可中断，输入时按 Ctrl-C 清空当前行。粘贴多行文字时，作为一条消息发送。
没有系统提示词：模型只知道对话里说过的话。""",
)


def of_locale() -> Words:
    """Chinese where the locale is, else English."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return CHINESE if (next(filter(None, names), "")).lower().startswith("zh") else ENGLISH
