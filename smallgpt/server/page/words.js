// What the page says, in English and Chinese.

import { local } from './storage.js';

const KEY = 'smallgpt.language';
const LANGUAGES = ['en', 'zh-CN'];

const s = (n) => (String(n) === '1' ? '' : 's');

const WORDS = {
  // Frame
  skip: ['Skip to the content', '跳到内容'],
  sidebar: ['Sidebar', '侧栏'],
  views: ['Views', '页面'],
  openMenu: ['Open the sidebar', '打开侧栏'],
  closeMenu: ['Close the sidebar', '关闭侧栏'],
  language: ['Language', '语言'],
  chat: ['Chat', '聊天'],
  sentiment: ['Sentiment', '情感分析'],
  model: ['Model', '模型'],
  cancel: ['Cancel', '取消'],
  save: ['Save', '保存'],
  close: ['Close', '关闭'],
  // The server
  gone: ['The server does not answer. Trying again …', '服务器没有回应，正在重试……'],
  loading: ['The server is loading the model …', '服务器正在加载模型……'],
  draining: ['The server is shutting down.', '服务器正在关闭。'],
  failed: ['The server has failed: see its terminal.', '服务器出错了，请查看它的终端。'],
  back: ['The server is back.', '服务器已恢复。'],
  unreachable: ['The server cannot be reached.', '无法连接服务器。'],
  refused: [(status) => `The server answered with error ${status}.`, (status) => `服务器返回错误 ${status}。`],
  busy: ['The server is busy. Try again in a moment.', '服务器正忙，请稍后再试。'],
  keyTitle: ['This server asks for a key', '此服务器需要密钥'],
  keyMore: [
    'Ask whoever runs the server for it. It is kept until you close this tab.',
    '请向服务器的管理员索取。关闭此标签页后，密钥不会保留。',
  ],
  keyWrong: ['The server did not accept this key.', '服务器没有接受这个密钥。'],
  key: ['Key', '密钥'],
  // Conversations
  conversations: ['Conversations', '对话'],
  newConversation: ['New conversation', '新对话'],
  search: ['Search conversations', '搜索对话'],
  noneFound: ['No conversation has these words.', '没有找到相关对话。'],
  unreadable: [
    (n) => `${n} saved conversation${s(n)} cannot be read by this version and stay${n === 1 ? 's' : ''} as ${n === 1 ? 'it is' : 'they are'}.`,
    (n) => `有 ${n} 个已保存的对话无法由此版本读取，已原样保留。`,
  ],
  untitled: ['New conversation', '新对话'],
  import: ['Import', '导入'],
  export: ['Export', '导出'],
  exportThis: ['Export this conversation', '导出此对话'],
  exportAll: [(n) => `Export ${n} conversation${s(n)}`, (n) => `导出 ${n} 个对话`],
  exportOne: ['Export the conversation', '导出对话'],
  exportMore: ['Of each message, the version that is shown is exported.', '每条消息导出当前显示的版本。'],
  exportJson: ['JSON, messages in OpenAI’s format', 'JSON（OpenAI 消息格式）'],
  exportText: ['Text to train on: one utterance a line', '训练文本：一行一句话'],
  exportNothing: [
    'There is no conversation of two or more messages yet.',
    '还没有包含两条以上消息的对话。',
  ],
  imported: [(n) => `${n} conversation${s(n)} imported.`, (n) => `已导入 ${n} 个对话。`],
  importEmpty: [(name) => `${name}: there is no conversation in it.`, (name) => `${name}：里面没有对话。`],
  importTooMany: [
    (name) => `${name}: more than 1,000 conversations. Import a part of them.`,
    (name) => `${name}：超过 1,000 个对话，请分批导入。`,
  ],
  importUnknown: [
    (name) => `${name}: neither messages in OpenAI’s format nor text with one utterance a line.`,
    (name) => `${name}：既不是 OpenAI 格式的消息，也不是一行一句的文本。`,
  ],
  importUndecodable: [
    (name) => `${name} is not a text file in UTF-8 or GB18030.`,
    (name) => `${name} 不是 UTF-8 或 GB18030 编码的文本文件。`,
  ],
  full: [
    'This browser has no room left: the latest messages are only in this tab. Export conversations, then delete some.',
    '浏览器的存储空间已满：最新的消息只在此标签页中。请导出对话，然后删除一些。',
  ],
  rename: ['Rename', '重命名'],
  renameTitle: ['Rename the conversation', '重命名对话'],
  title: ['Title', '标题'],
  delete: ['Delete', '删除'],
  deleteNamed: [(title) => `Delete: ${title}`, (title) => `删除：${title}`],
  deleteConversation: ['Delete this conversation', '删除此对话'],
  deleteConversationMore: [
    'It is kept nowhere else. This cannot be undone.',
    '对话没有保存在其他地方，删除后无法恢复。',
  ],
  // Messages
  messages: ['Messages', '消息'],
  message: ['Message', '输入消息'],
  hint: ['Enter sends, Shift + Enter starts a new line', 'Enter 发送，Shift + Enter 换行'],
  welcome: ['What shall we talk about?', '聊点什么吧'],
  welcomeMore: [
    'The model is small: it talks, but it knows little, makes things up, and is no help in a crisis. Conversations stay in this browser.',
    '这是一个小模型：会聊天，但懂得不多，会乱说，也不能在危急时刻帮助你（心理援助热线 12356）。对话只保存在此浏览器中。',
  ],
  you: ['You', '你'],
  them: ['Model', '模型'],
  system: ['System', '系统'],
  send: ['Send', '发送'],
  stop: ['Stop', '停止'],
  toNewest: ['To the newest message', '回到最新消息'],
  writing: ['The model is writing.', '模型正在回复。'],
  replied: [(text) => `The model: ${text}`, (text) => `模型：${text}`],
  askReply: ['Get a reply', '获取回复'],
  tryAgain: ['Try again', '重试'],
  edit: ['Edit', '编辑'],
  editMessage: ['Edit the message', '编辑消息'],
  regenerate: ['Another reply', '换一个回复'],
  deleteMessage: ['Delete this message and what follows', '删除此消息及其后内容'],
  deleteMessages: [
    (n) => (n === 1 ? 'Delete this message?' : `Delete this message and ${n - 1} after it?`),
    (n) => (n === 1 ? '删除这条消息？' : `删除这条消息及其后的 ${n - 1} 条？`),
  ],
  good: ['Good reply', '回复得好'],
  bad: ['Bad reply', '回复得不好'],
  wouldSay: ['I would have said …', '我会这样说……'],
  wouldSayMore: [
    'When you save, the conversation up to here and your words are kept on the server.',
    '保存后，到此为止的对话和你写的话会保存在服务器上。',
  ],
  unchanged: ['This is what was said: nothing has changed.', '内容和原来的回复一样，没有改动。'],
  edited: ['Edited by you.', '由你改写。'],
  editedSent: ['Edited by you, and saved on the server.', '由你改写，已保存到服务器。'],
  kept: ['Replies that you mark or correct are kept on the server.', '你评价或改写的回复会保存在服务器上。'],
  keptTitle: ['What is kept', '保存哪些内容'],
  keptWhat: [
    'The conversation up to the reply, your verdict or correction, the time, and the model’s name. Nothing about who you are, unless the conversation says it.',
    '到该回复为止的对话、你的评价或改写、时间和模型名称。不记录你是谁，除非对话里提到。',
  ],
  keptWhere: [
    'It is in a file on the server, which only the server’s account can read. All other conversations are in this browser alone.',
    '它们保存在服务器上的一个文件中，只有运行服务器的账户可以读取。其他对话只在此浏览器中。',
  ],
  keptDelete: [
    'Whoever runs the server can delete it: each line of the file is one record. The delete buttons here only delete what is in this browser.',
    '服务器的管理员可以删除：文件中每行是一条记录。这里的删除按钮只删除此浏览器中的内容。',
  ],
  keptRepeat: [
    'A model that is trained on it may repeat it: keep private things out.',
    '用这些内容训练的模型可能会复述它们：请不要包含隐私。',
  ],
  thanks: ['Saved on the server. Thank you.', '已保存到服务器，谢谢。'],
  before: ['Previous version', '上一个版本'],
  after: ['Next version', '下一个版本'],
  versions: [(i, n) => `Version ${i} of ${n}`, (i, n) => `第 ${i} 个版本，共 ${n} 个`],
  stopped: ['Stopped.', '已停止。'],
  interrupted: ['Interrupted.', '回复中断。'],
  length: ['The reply has reached its longest length.', '回复已达到最大长度。'],
  speed: [
    (n, rate) => `${n} character${s(n)}${rate ? ` · ${rate} a second` : ''}`,
    (n, rate) => `${n} 字${rate ? ` · 每秒 ${rate} 字` : ''}`,
  ],
  forgotten: [
    'The model’s memory is full: it no longer reads what is above.',
    '模型的上下文已满，不再读取以上内容。',
  ],
  forgottenCharacters: [
    (n) => `The model did not read the first ${n} character${s(n)} of your message: it is too long.`,
    (n) => `你的消息太长，模型没有读取开头的 ${n} 个字。`,
  ],
  noReply: ['The model said nothing.', '模型没有回复。'],
  // Settings
  settings: ['Settings', '设置'],
  settingsMore: ['An empty field takes the model’s own setting.', '留空则使用模型自己的设置。'],
  reset: ['Reset', '重置'],
  systemMessage: ['System message', '系统消息'],
  systemMessageMore: [
    'Said before this conversation, and before new ones.',
    '放在此对话和新对话最前面的话。',
  ],
  temperature: ['Temperature', '温度'],
  temperatureMore: ['0 always takes the likeliest character; higher is more varied.', '0 总是取最可能的字；越高越多样。'],
  top_p: ['top_p', 'top_p'],
  top_pMore: ['Draw from the likeliest that reach this probability together; 1 is off.', '只从累计概率达到此值的最可能的候选中抽取；1 表示不限。'],
  top_k: ['top_k', 'top_k'],
  top_kMore: ['Draw only from this many of the likeliest; 0 is off.', '只从最可能的前 k 个候选中抽取；0 表示不限。'],
  repetition_penalty: ['Repetition penalty', '重复惩罚'],
  repetition_penaltyMore: ['Above 1, what was said becomes less likely.', '大于 1 时，说过的字更不容易再出现。'],
  max_tokens: ['Longest reply', '最长回复'],
  max_tokensMore: ['In characters, or in pieces of up to 4 characters.', '以字计；若模型以词片为单位，则以词片计。'],
  seed: ['Seed', '随机种子'],
  seedMore: ['The same seed gives the same reply; empty: another each time.', '相同的种子得到相同的回复；留空则每次不同。'],
  best_of: ['Best of', '候选回复数'],
  best_ofMore: ['Draw this many replies and keep the one that fits best.', '生成这么多个回复，保留最合适的一个。'],
  // Sentiment
  texts: ['Text to judge', '要判断的文本'],
  byLine: ['One text a line', '一行一条文本'],
  explain: ['Mark what decided', '标出关键字'],
  judge: ['Judge', '判断'],
  noText: ['Type or paste a text first.', '请先输入或粘贴文本。'],
  judging: [(done, all) => `${done} of ${all} …`, (done, all) => `${done} / ${all} ……`],
  judged: [(n) => `${n} text${s(n)} judged.`, (n) => `已判断 ${n} 条文本。`],
  legendMark: ['字', '字'],
  legendFor: ['speaks for the verdict (solid line)', '支持此判断（实线）'],
  legendAgainst: ['speaks against it (dotted line)', '反对此判断（点线）'],
  speaksFor: ['For it', '支持'],
  speaksAgainst: ['Against it', '反对'],
  weight: [(text, weight) => `${text}: ${weight}`, (text, weight) => `${text}：${weight}`],
  tableTitle: ['A table of texts', '表格文件'],
  drop: ['Drop a CSV file here, or', '将 CSV 文件拖到这里，或'],
  chooseFile: ['Choose a file', '选择文件'],
  rows: [(n) => `${n} row${s(n)}`, (n) => `${n} 行`],
  textTooLong: ['A text has more than 32,768 characters: shorten it.', '有一条文本超过 32,768 个字符，请缩短。'],
  notExplained: [
    'Texts of more than 4,096 characters are judged without marks.',
    '超过 4,096 个字符的文本只给出判断，不标出关键字。',
  ],
  column: ['Column with the texts', '文本所在的列'],
  headerRow: ['The first row names the columns', '第一行是列名'],
  columnNumber: [(n) => `Column ${n}`, (n) => `第 ${n} 列`],
  firstRows: ['The first rows', '前几行'],
  score: ['Judge all', '全部判断'],
  progress: ['Progress', '进度'],
  scored: [
    (done, all, rate) => `${done} of ${all}${rate ? ` · ${rate} a second` : ''}`,
    (done, all, rate) => `${done} / ${all}${rate ? ` · 每秒 ${rate} 条` : ''}`,
  ],
  waiting: ['Waiting for the server …', '正在等待服务器……'],
  scoringStopped: [(done, all) => `Stopped after ${done} of ${all}.`, (done, all) => `已停止：${done} / ${all}。`],
  scoringDone: [(n) => `${n} text${s(n)} judged.`, (n) => `已判断 ${n} 条文本。`],
  blank: [(n) => `${n} row${s(n)} without text ${n === 1 ? 'has' : 'have'} no verdict.`, (n) => `${n} 行没有文本，未作判断。`],
  cut: [
    (n) => `Of ${n} row${s(n)} only the first 32,768 characters were judged.`,
    (n) => `有 ${n} 行只判断了前 32,768 个字符。`,
  ],
  downloadScored: ['Download the table with verdicts', '下载带判断结果的表格'],
  tableEmpty: [(name) => `${name}: the table is empty.`, (name) => `${name}：表格是空的。`],
  // Model card
  kindChat: ['Chat', '聊天'],
  kindClassifier: ['Classifier', '分类器'],
  parameters: ['Parameters', '参数量'],
  precision: ['Precision', '精度'],
  device: ['Device', '设备'],
  context: ['Context', '上下文'],
  contextValue: [(n) => `${n} tokens`, (n) => `${n} 个词元`],
  vocabulary: ['Vocabulary', '词表'],
  vocabularyCharacters: [(n) => `${n} characters`, (n) => `${n} 个字符`],
  vocabularySubwords: [(n) => `${n} characters and pieces`, (n) => `${n} 个字符和词片`],
  step: ['Trained for', '训练步数'],
  stepValue: [(n) => `${n} step${s(n)}`, (n) => `${n} 步`],
  labels: ['Labels', '标签'],
  sampling: ['Sampling', '采样'],
  curve: ['Loss in training', '损失曲线'],
  curveMore: [
    (step, training, validation) =>
      `After ${step} steps${training ? ` the training loss is ${training}` : ''}` +
      `${validation ? `${training ? ' and' : ''} the validation loss is ${validation}` : ''}.`,
    (step, training, validation) =>
      `经过 ${step} 步${training ? `，训练损失为 ${training}` : ''}${validation ? `，验证损失为 ${validation}` : ''}。`,
  ],
  noCurve: ['There is no record of the training.', '没有训练记录。'],
  training: ['Training', '训练'],
  validation: ['Validation', '验证'],
  steps: ['Step', '步数'],
  loss: ['Loss', '损失'],
  curveTable: ['The curve as a table', '以表格显示'],
};

let language = chosen();

// The language that was chosen, else the first of the browser's that the page speaks.
function chosen() {
  const saved = stored();
  if (LANGUAGES.includes(saved)) return saved;
  for (const wanted of navigator.languages) {
    if (/^zh\b/i.test(wanted)) return 'zh-CN';
    if (/^en\b/i.test(wanted)) return 'en';
  }
  return 'en';
}

function stored() {
  try {
    return local()?.getItem(KEY);
  } catch {
    return null;
  }
}

export const currentLanguage = () => language;

// Speak another language from now on.
export function speak(wanted) {
  language = wanted;
  try {
    local()?.setItem(KEY, wanted);
  } catch {
    // It holds until the page is closed.
  }
}

// The words for a key of WORDS.
export function t(key, ...values) {
  const words = WORDS[key][LANGUAGES.indexOf(language)];
  return typeof words === 'function' ? words(...values) : words;
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);
}

export function percent(value) {
  const options = { style: 'percent', minimumFractionDigits: 1, maximumFractionDigits: 1 };
  return new Intl.NumberFormat(language, options).format(value);
}

// Put the words into what index.html holds: `data-word`, `data-label`, `data-placeholder`.
export function translate(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll('[data-word]')) {
    const words = t(element.dataset.word);
    const glyph = element.querySelector('.glyph');
    element.replaceChildren(...(glyph ? [glyph] : []), words);
  }
  for (const element of root.querySelectorAll('[data-label]')) {
    element.setAttribute('aria-label', t(element.dataset.label));
    if (element.tagName === 'BUTTON') element.title = t(element.dataset.label);
  }
  for (const element of root.querySelectorAll('[data-placeholder]')) {
    element.placeholder = t(element.dataset.placeholder);
  }
}
